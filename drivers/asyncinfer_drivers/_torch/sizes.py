"""Finds the batch size with the most images/s."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from asyncinfer_drivers._torch.course import Steps

__all__ = ("LIMIT", "LONGEST_CALL", "best_size", "memory_left")

#: tasks in the largest batch that is tried
LIMIT = 256
#: seconds that one call may take, where the user has set no ``latency_target``
LONGEST_CALL = 0.25
#: a smaller batch is as good as the best one if its rate is at least this part of that one's
_AS_GOOD = 0.95
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
    """The smallest of 1, 2, 4, ... ``limit`` with about the best rate; and each size's tasks/s.

    ``run`` runs a batch of that size; the first but 1 for which it raises ends the search. Each is
    run four times, the first two are not counted; each call is a step. None is begun that is likely
    to take longer than ``longest`` seconds a call or to end after ``budget`` seconds, or for which
    ``memory`` (bytes left) would become short. ``timer`` tells how long a call takes, ``clock``
    what is left of the budget.
    """
    rates: dict[int, float] = {}
    started, size, since_best = clock(), 1, 0
    while size <= limit and wanted():
        before, begun = memory(), clock()
        try:
            seconds = yield from _time(run, size, timer)
        except Exception:
            if not rates:
                raise
            break
        rates[size] = size / seconds
        since_best = 0 if rates[size] >= max(rates.values()) else since_best + 1
        left = memory()
        if before is not None and left is not None and 2 * (before - left) > _MEMORY_PART * left:
            break
        # twice the size takes about twice the time at most
        now = clock()
        if 2 * seconds > longest or now - started + 2 * (now - begun) > budget:
            break
        if since_best >= _FRUITLESS_DOUBLINGS:
            break
        size = 2 * size if size == limit else min(2 * size, limit)
    if not rates:
        return 1, rates
    enough = _AS_GOOD * max(rates.values())
    return min(size for size, rate in rates.items() if rate >= enough), rates


def _time(run: Callable[[int], None], size: int, timer: Callable[[], float]) -> Steps[float]:
    seconds = []
    for call in range(4):
        started = timer()
        run(size)
        if call >= 2:  # the first is checked, and a graph is compiled for it in the second
            seconds.append(timer() - started)
        yield None
    return max(min(seconds), 1e-9)


def memory_left(file: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs can still have; ``None`` where Linux does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
