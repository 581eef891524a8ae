"""Finds the batch size with the most images/s."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from asyncinfer_drivers._torch.course import Steps
from asyncinfer_drivers._torch.paired import compared

__all__ = ("LIMIT", "LONGEST_CALL", "best_size", "memory_left")

#: tasks in the largest batch that is tried
LIMIT = 256
#: seconds that one call may take, where the user has set no ``latency_target``
LONGEST_CALL = 0.25
#: a smaller batch is as good as the best one if that one's rate is at most this many times its own
_AS_GOOD = 1.02
#: which of two is better is told by calls in turns where their rates differ by less than this
_NEAR = 1.1
#: a size is tried if its call should take at most this part of what one may
_SURELY = 0.95
#: seconds that each call costs besides: a thread is woken, its answer taken by the event loop
_HAND_OVER = 80e-6
#: the search ends after this many doublings in a row without a better rate
_FRUITLESS_DOUBLINGS = 3
#: the next batch, twice as large, may take at most this part of the memory that is left
_MEMORY_PART = 0.25


def best_size(
    run: Callable[[int], None],
    *,
    budget: float,
    longest: float,
    limit: int = LIMIT,
    timer: Callable[[], float] = time.perf_counter,
    wanted: Callable[[], bool] = lambda: True,
    memory: Callable[[], int | None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Steps[tuple[int, dict[int, float]]]:
    """The smallest of 1, 2, 4, ... with about the best rate; and each size's tasks/s.

    The rates count what it costs to hand over a call, so that small models get large batches.

    The last one is ``limit``, or as many as fit into ``longest`` seconds.

    ``run`` runs a batch of that size; the first but 1 for which it raises ends the search. Each is
    run four times, the first two are not counted; those with nearly the best rate are compared with
    it in turns then. Each call, or pair of calls, is a step. No size is begun that is likely to end
    after ``budget`` seconds, or for which ``memory`` (bytes left) would become short. ``timer``
    tells how long a call takes, ``clock`` what is left of the budget.
    """
    rates, times = dict[int, float](), dict[int, float]()
    started, size, since_best = clock(), 1, 0
    while size <= limit and wanted():
        before, begun = memory(), clock()
        try:
            seconds = yield from _time(run, size, timer)
        except Exception:
            if not rates:
                raise
            break
        if rates and seconds > longest:
            break
        times[size], rates[size] = seconds, size / (seconds + _HAND_OVER)
        since_best = 0 if rates[size] >= max(rates.values()) else since_best + 1
        left = memory()
        if before is not None and left is not None and 2 * (before - left) > _MEMORY_PART * left:
            break
        following = min(2 * size, limit, _fitting(times, longest))
        # twice the size takes about twice the time at most
        now = clock()
        if following <= size or now - started + following / size * (now - begun) > budget:
            break
        if since_best >= _FRUITLESS_DOUBLINGS:
            break
        size = following
    if not rates:
        return 1, rates
    best = yield from _smallest(
        rates,
        lambda size: (_seconds(run, size, timer) + _HAND_OVER) / size,
        enough=lambda: clock() - started > budget,
        wanted=wanted,
    )
    return best, rates


def _fitting(times: dict[int, float], longest: float) -> int:
    """The largest size whose call should not take longer, by the last two that were tried."""
    size, seconds = 0, 0.0
    each = math.inf
    for tried, took in times.items():
        each = max((took - seconds) / (tried - size), 1e-12)
        size, seconds = tried, took
    left = _SURELY * longest - seconds
    return LIMIT if each * LIMIT <= left else size + int(left / each)


def _smallest(
    rates: dict[int, float],
    each: Callable[[int], float],
    *,
    enough: Callable[[], bool],
    wanted: Callable[[], bool],
) -> Steps[int]:
    """The smallest size that is as good as the best one; ``each`` gives a call's seconds a task."""
    best = max(rates, key=lambda size: rates[size])
    for size in sorted(size for size in rates if size < best):
        times = rates[best] / rates[size]
        if times < _NEAR and not enough():
            times = yield from compared(
                partial(each, best),
                partial(each, size),
                least=_AS_GOOD,
                enough=enough,
                wanted=wanted,
            )
        if times <= _AS_GOOD:
            return size
    return best


def _time(run: Callable[[int], None], size: int, timer: Callable[[], float]) -> Steps[float]:
    seconds = []
    for call in range(4):
        took = _seconds(run, size, timer)
        if call >= 2:  # the first is checked, and a graph is compiled for it in the second
            seconds.append(took)
        yield None
    return min(seconds)


def _seconds(run: Callable[[int], None], size: int, timer: Callable[[], float]) -> float:
    started = timer()
    run(size)
    return max(timer() - started, 1e-9)


def memory_left(file: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs can still have; ``None`` where Linux does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
