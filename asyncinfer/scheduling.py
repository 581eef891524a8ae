"""Which waiting task a device pulls: the earliest-finish-time rule, and the paper's baselines.

A policy is asked whenever a device is free. It answers with a :class:`Grant` - how many waiting
tasks to skip and how many to take - or ``None`` to let the device rest until something changes.
To write another one, implement :class:`Policy` and pass an instance as ``Dispatcher(policy=...)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from asyncinfer.census import Census
from asyncinfer.errors import ConfigError

__all__ = (
    "ALL_REST",
    "EarliestFinish",
    "Grant",
    "Greedy",
    "LockStep",
    "Policy",
    "PoolView",
    "Serial",
    "Static",
    "WorkerView",
    "policy_named",
)

#: from so many devices on, what they do is counted by expectation
MANY = 64
#: two moments closer than this part of a service time are the same moment
TIE = 1e-6
#: a part of the work that makes no difference
NEGLIGIBLE = 1 / 250
#: by so much of their deviation late calls delay the end
LATE = 1 / 8
#: a device that rests is tried again after this many of its service times
RETRY_REST = 200


class Grant(NamedTuple):
    """Skip ``skip`` waiting tasks, then take ``take`` consecutive ones in one call."""

    skip: int
    take: int


#: answer of a policy: this device rests, and all that need longer for a single task would as well
ALL_REST = Grant(0, 0)


class WorkerView(Protocol):
    """What a policy may know of a device. Times are seconds; ``nan`` while unknown."""

    #: its place in the list of devices, from 0
    position: int
    max_batch: int
    #: duration of one call with a full batch
    latency: float
    #: time between two finished tasks while it is kept busy
    interval: float

    @property
    def in_flight(self) -> int:
        """Tasks it is running or has reserved."""
        ...

    @property
    def deviation(self) -> float:
        """Mean relative deviation of its calls from what was expected, 0 to 1."""
        ...

    def expect(self, batch: int) -> float:
        """Duration of one call with ``batch`` tasks."""
        ...

    def free_in(self, now: float) -> float:
        """Time until it can start another call: 0 when idle, growing again once overdue."""
        ...

    def rested(self, now: float) -> float:
        """Time since it last finished something or was opened."""
        ...


class PoolView(Protocol):
    """What a policy may know of the dispatcher."""

    now: float

    @property
    def waiting(self) -> int:
        """Tasks inside the window that may be started now."""
        ...

    @property
    def backlog(self) -> bool:
        """Whether more tasks queue behind the window."""
        ...

    @property
    def devices(self) -> Sequence[WorkerView]:
        """The devices that are up, by position."""
        ...

    @property
    def census(self) -> Census:
        """The devices that are up and finish when they should, summed up by their latency.

        For rules that cannot afford to look at each of many devices.
        """
        ...

    def index(self, offset: int) -> int:
        """Index in its stream of the waiting task at ``offset``."""
        ...


class Policy(Protocol):
    """Chooses tasks for devices. One instance serves one dispatcher."""

    #: whether a very fast device may be given several calls' worth of tasks at once
    reserves: bool

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """What the free ``device`` takes now, ``None`` if nothing. ``pool.waiting`` is at least 1.

        Free devices are asked in turn, the one with the shortest single call first. After the
        answer ``ALL_REST`` the others are not asked, except for one of them now and then.
        """
        ...


class EarliestFinish:
    """Earliest-finish-time pull: optimum makespan, and results in order.

    A device skips the tasks that the others would finish before it could finish one::

        N_i = sum over k of ceil(max(0, L_i - r_k - L_k) / T_k)

    with ``T`` the interval between a device's completions, ``L`` its latency and ``r`` the time
    until it is free. For a device that runs one task at a time ``L = T``. If fewer than ``N_i``
    + 1 tasks wait, the others will be done with all of them first, and device *i* rests. So do all
    that are slower: their ``N`` is no smaller.

    Of very many devices the sum is not made one by one: each is taken to be at a random point
    of its present call, which makes it ``sum of (L_i - L_k) / T_k``.

    Where service times vary, a slow task that turns out slower still would hold up everything. So
    ``L_i`` counts as ``L_i * (1 + d)``, ``d`` being the mean relative deviation seen; and devices
    that are faster by less than that are not waited for, as next time they may be slower. Without
    noise ``d`` is 0 and the rule is exact.
    """

    reserves = True

    def pull(self, device: WorkerView, pool: PoolView) -> Grant:
        """The largest batch that fits behind the tasks others finish first."""
        waiting = pool.waiting
        low, high = 0, min(device.max_batch, waiting)
        best: Grant | None = None
        batch = high
        while low < high:
            skip = tasks_before(device.expect(batch), device, pool)
            if skip + batch <= waiting:
                low, best = batch, Grant(skip, batch)
            else:
                high = batch - 1
            batch = (low + high + 1) // 2
        if best is None and self._try_again(device, pool):
            return Grant(waiting - 1, 1)
        if best is None or self._is_gamble(device, best, pool):
            return ALL_REST
        return best

    def _is_gamble(self, device: WorkerView, grant: Grant, pool: PoolView) -> bool:
        """Whether all might have to wait for this call at the end, and little is won by it.

        Of the last tasks, a device takes none that it must do in the expected time to be of use, if
        the others do hundreds in that time: leaving it to them costs less than 1 %. Where calls are
        known to be late at times, more may be left to them.
        """
        least = max(NEGLIGIBLE, LATE * _deviation(pool))
        if pool.backlog or least * grant.skip < 1:
            return False
        if least * grant.skip < _alike(device.latency, pool):
            return False
        skip = tasks_before(2 * device.expect(grant.take), device, pool)
        return skip + grant.take > pool.waiting

    def _try_again(self, device: WorkerView, pool: PoolView) -> bool:
        """A device that seems too slow gets a task now and then: it may have recovered."""
        return pool.backlog and device.rested(pool.now) > RETRY_REST * device.latency


def _alike(latency: float, pool: PoolView) -> int:
    """How many devices are as fast or up to twice as slow: those slower yet rest in any case."""
    if len(pool.devices) >= MANY:
        return pool.census.between(latency, 2 * latency)
    return sum(latency <= other.latency <= 2 * latency for other in pool.devices)


def tasks_before(latency: float, device: WorkerView, pool: PoolView) -> int:
    """How many waiting tasks the other devices finish in less than ``latency`` seconds.

    0 for a device of unknown speed; other devices of unknown speed are not counted on.
    """
    if len(pool.devices) >= MANY:
        return _expected_before(latency, device, pool.census)
    deviation = _deviation(pool)
    late, count = latency * (1 + deviation), 0
    for other in pool.devices:  # the comparison is false where either is unknown
        if other.latency * (1 + deviation) < latency and other is not device:
            lead = late - other.latency - other.free_in(pool.now)
            if lead > 0:
                count += math.ceil(lead / other.interval - TIE)
    return count


def _expected_before(latency: float, device: WorkerView, census: Census) -> int:
    """The same for many devices, each taken to be at a random point of its present call."""
    if math.isnan(latency):
        return 0
    late, faster = latency * (1 + census.deviation), latency / (1 + census.deviation)
    count = census.finished_before(faster, late)
    if device.latency < faster:  # it is to do more than its usual call: it counted itself
        count -= (late - device.latency) / device.interval
    return max(0, round(count))


def _deviation(pool: PoolView) -> float:
    """Mean deviation of those devices that have one: the others did nothing yet, or never vary."""
    if len(pool.devices) >= MANY:
        return pool.census.deviation
    seen = [device.deviation for device in pool.devices if device.deviation > 0]
    return sum(seen) / len(seen) if seen else 0.0


class Greedy:
    """The paper's plain pull: a free device takes the first waiting task."""

    reserves = True

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first tasks."""
        return Grant(0, min(device.max_batch, pool.waiting))


class Static:
    """An equal split made beforehand: of n devices, number j gets the tasks j, j+n, j+2n ..."""

    reserves = False

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first waiting task that belongs to the device."""
        devices = pool.devices
        mine = devices.index(device)
        for offset in range(pool.waiting):
            if pool.index(offset) % len(devices) == mine:
                return Grant(offset, 1)
        return None


class LockStep:
    """Synchronous rounds: every device takes one batch, and all wait for the slowest."""

    reserves = False

    def __init__(self) -> None:
        self._served: set[int] = set()

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first tasks, once a round."""
        if not any(other.in_flight for other in pool.devices):
            self._served.clear()
        if device.position in self._served:
            return None
        self._served.add(device.position)
        return Grant(0, min(device.max_batch, pool.waiting))


class Serial:
    """One call at a time, all of them on the first device."""

    reserves = False

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first tasks, for the first device."""
        if device is not pool.devices[0] or device.in_flight:
            return None
        return Grant(0, min(device.max_batch, pool.waiting))


_POLICIES: dict[str, type[Policy]] = {
    "eft": EarliestFinish,
    "greedy": Greedy,
    "static": Static,
    "sync": LockStep,
    "serial": Serial,
}


def policy_named(policy: str | Policy) -> Policy:
    """A new policy of that name, or the given object itself. Raises ``ConfigError``."""
    if not isinstance(policy, str):
        return policy
    if policy not in _POLICIES:
        known = ", ".join(_POLICIES)
        raise ConfigError(f"unknown policy {policy!r}: choose one of {known}")
    return _POLICIES[policy]()
