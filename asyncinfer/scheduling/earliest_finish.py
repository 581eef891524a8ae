"""The earliest-finish-time rule."""

from __future__ import annotations

import math

from asyncinfer.scheduling.census import Census
from asyncinfer.scheduling.policy import ALL_REST, Grant, PoolView, WorkerView

__all__ = ("MANY", "EarliestFinish")

#: from so many devices on, what they do is counted by expectation
MANY = 64
#: two moments closer than this part of a service time are the same moment
TIE = 1e-6
#: calls shorter than this, in seconds, are not worth the time the rule takes
TRIFLE = 10e-6
#: a part of the work that makes no difference
NEGLIGIBLE = 1 / 250
#: deviation of many devices before any of them has made a call
PRESUMED_DEVIATION = 0.25
#: by so much of their deviation late calls delay the end
LATE_SHARE = 1 / 8
#: a device that rests is tried again after this many of its service times
RETRY_REST = 200


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
        if device.latency < TRIFLE:
            return Grant(0, min(device.max_batch, waiting))
        low, high = 0, min(device.batch_limit, waiting)
        best: Grant | None = None
        batch = high
        while low < high:
            skip, more = tasks_before(batch, device.expect(batch), device, pool)
            if skip + more + batch <= waiting:
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
        many = len(pool.devices) >= MANY
        known = not many or pool.census.seen
        least = max(NEGLIGIBLE, LATE_SHARE * (_deviation(pool) if known else PRESUMED_DEVIATION))
        if pool.backlog or least * grant.skip < 1:
            return False
        if least * grant.skip < _alike(device.latency, pool):
            return False
        batch = grant.take
        skip, _ = tasks_before(batch, 2 * device.expect(batch), device, pool)
        return skip + batch > pool.waiting

    def _try_again(self, device: WorkerView, pool: PoolView) -> bool:
        """A device that seems too slow gets a task now and then: it may have recovered."""
        return pool.backlog and device.rested(pool.now) > RETRY_REST * device.latency


def _alike(latency: float, pool: PoolView) -> int:
    """How many devices are as fast or up to twice as slow: those slower yet rest in any case."""
    if len(pool.devices) >= MANY:
        return pool.census.between(latency, 2 * latency)
    return sum(latency <= other.latency <= 2 * latency for other in pool.devices)


def tasks_before(batch: int, latency: float, device: WorkerView, pool: PoolView) -> tuple[int, int]:
    """How many waiting tasks the other devices finish before ``device`` could finish ``batch``.

    In full batches, and how many more in smaller ones by those that are idle or faster: otherwise
    one device would take all that wait, and those beside it none. None for a device of unknown
    speed; other devices of unknown speed are not counted on.
    """
    if len(pool.devices) >= MANY:
        return _expected_before(latency, device, pool.census), 0
    slack = 1 + _deviation(pool)
    late, count, more = latency * slack, 0, 0
    for other in pool.devices:  # the comparisons are false where either is unknown
        if other is device or not other.expect(1) * slack < latency:
            continue
        left = late - other.free_in(pool.now)
        if other.latency * slack < latency and left > other.latency:
            call = other.interval * other.batch_limit
            calls = math.ceil((left - other.latency) / call - TIE)
            count += other.batch_limit * calls
            left -= call * calls
        if other.batch_limit > 1 and (not other.in_flight or other.expect(batch) < latency / slack):
            more += other.batch_within(left)
    return count, more


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
