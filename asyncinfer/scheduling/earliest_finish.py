"""The earliest-finish-time rule."""

from __future__ import annotations

import math

from asyncinfer.scheduling.census import Census
from asyncinfer.scheduling.policy import ALL_REST, Grant, PoolView, WorkerView

__all__ = ("MANY", "EarliestFinish")

#: from this many devices on, what the others finish is not summed up one by one, but expected
MANY = 64
#: two moments that differ by less than this part of a service time are taken as the same
TIE = 1e-6
#: a device whose calls are shorter than this, in seconds, takes the first tasks: working out the
#: rule would take longer than a call
TRIFLE = 10e-6
#: part of the work that is left to the other devices without noticeable delay
NEGLIGIBLE = 1 / 250
#: the deviation of many devices that is assumed before any of them has finished a call
PRESUMED_DEVIATION = 0.25
#: calls vary, and late ones delay the end by about this part of their mean deviation
LATE_SHARE = 1 / 8
#: a resting device is given a task after it has rested for this many of its service times, or of
#: the seconds for which that task can hold up others; sooner while it has answered few calls. The
#: second factor is for its second call of all, with the first one counted as rest
RETRY_REST, COLD_REST = 200, 50
#: a call on trial is copied after so many seconds, and so many calls of the device for the copy
TRIAL_GRACE, TRIAL_CALLS = 0.1, 5


class EarliestFinish:
    """Earliest-finish-time pull: optimum makespan, and results in order.

    A device skips the tasks that the others would finish before it could finish one::

        N_i = sum over k of ceil(max(0, L_i - r_k - L_k) / T_k)

    with ``T`` the interval between a device's completions, ``L`` its latency and ``r`` the time
    until it is free. For a device that runs one task at a time ``L = T``. If fewer than ``N_i + 1``
    tasks wait, the others will be done with all of them first, and device *i* rests. So do all
    slower devices, since their ``N`` is no smaller.

    With 64 devices or more the sum is not worked out device by device. Each device is then taken to
    be at a random point of its present call, which gives ``sum of (L_i - L_k) / T_k``.

    Where service times vary, a task on a slow device that takes even longer than expected would
    hold up everything behind it. So ``L_i`` counts as ``L_i * (1 + d)``, where ``d`` is the mean
    relative deviation of calls from what was expected. And devices that are faster by less than
    that are not waited for, as next time they may be slower. Without noise ``d`` is 0 and the rule
    is exact.
    """

    reserves = True
    #: of devices that share something, only the set that does most together takes part. A policy
    #: without this attribute has all of them work
    chooses_sets = True

    def pull(self, device: WorkerView, pool: PoolView) -> Grant:
        """Grant the largest batch that is left behind the tasks that the others finish first."""
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
            return Grant(waiting - 1, 1, trial=True)
        if best is None or self._is_gamble(device, best, pool):
            return ALL_REST
        return best

    def _is_gamble(self, device: WorkerView, grant: Grant, pool: PoolView) -> bool:
        """Whether this call may keep everybody waiting at the end, while it helps only a little.

        This concerns the last tasks of a stream, where the call helps only if it takes no longer
        than expected. If the other devices finish hundreds of tasks in that time, leaving these
        tasks to them costs less than 1 %. Where calls vary, more is left to them.
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
        """Whether a device that seems too slow is to be given a task: it may have become faster.

        A first call is often slow as everything is cold, so that one call says little: the next is
        due at once if that was long and tasks queue, and later ones after rests of 1, 3, 7 ...
        times as long. Who waits for such a call gets a copy soon. Where there can be none, only
        what queues behind a window may be held up.
        """
        rested, calls = device.rested(pool.now), device.batches
        if not device.repeatable:
            return pool.backlog and rested > RETRY_REST * device.latency
        if calls == 1 and pool.backlog:
            return rested + device.latency > COLD_REST * _holds_up(device, pool)
        rests = min(RETRY_REST, 2 ** min(calls, 10) / 2 - 1) if calls else RETRY_REST
        if rested <= rests * device.latency:
            return False
        return rested > RETRY_REST * _holds_up(device, pool)


def _holds_up(device: WorkerView, pool: PoolView) -> float:
    """Seconds for which a call on trial can hold up others: until it ends, or a copy of it does."""
    others = (d.latency for d in pool.devices if d is not device and d.repeatable)
    quickest = min((latency for latency in others if latency > 0), default=math.inf)
    return min(device.latency, TRIAL_GRACE + TRIAL_CALLS * quickest)


def _alike(latency: float, pool: PoolView) -> int:
    """How many devices are as fast or up to twice as slow; any that are slower rest in any case."""
    if len(pool.devices) >= MANY:
        return pool.census.between(latency, 2 * latency)
    return sum(latency <= other.latency <= 2 * latency for other in pool.devices)


def tasks_before(batch: int, latency: float, device: WorkerView, pool: PoolView) -> tuple[int, int]:
    """How many waiting tasks the other devices finish before ``device`` could finish ``batch``.

    Returns two numbers: the tasks that the others finish in full batches, and the further tasks
    that idle or faster ones finish in smaller batches. Without the second, one device would take
    all waiting tasks and leave none to the others. Both are 0 if the speed of ``device`` is
    unknown; other devices of unknown speed are left out.
    """
    if len(pool.devices) >= MANY:
        return _expected_before(latency, device, pool.census), 0
    slack = 1 + _deviation(pool)
    late, count, more = latency * slack, 0, 0
    for other in pool.devices:  # the comparisons are false if either speed is unknown
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
    """``tasks_before`` for many devices, each taken to be at a random point of its present call."""
    if math.isnan(latency):
        return 0
    late, faster = latency * (1 + census.deviation), latency / (1 + census.deviation)
    count = census.finished_before(faster, late)
    if device.latency < faster:  # a larger call than usual: the census counts ``device`` too
        count -= (late - device.latency) / device.interval
    return max(0, round(count))


def _deviation(pool: PoolView) -> float:
    """Mean deviation of the devices whose calls vary; 0 if there are none."""
    if len(pool.devices) >= MANY:
        return pool.census.deviation
    seen = [device.deviation for device in pool.devices if device.deviation > 0]
    return sum(seen) / len(seen) if seen else 0.0
