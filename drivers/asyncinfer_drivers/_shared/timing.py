"""Times a driver's calls, for ``calibrate``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from asyncinfer.driver import ServiceTime

__all__ = ("BUDGET", "line", "measured")

#: seconds that timing calls of one batch size may take
BUDGET = 0.4
#: calls of one batch size that are timed at most
_CALLS = 5


async def measured(
    infer: Callable[[Sequence[Any]], Awaitable[Any]], item: Any, max_batch: int
) -> ServiceTime:
    """Time calls with one ``item`` and with many.

    Takes about a second at most, or two calls where those are longer.
    """
    one = await _time(infer, [item])
    size = min(max_batch, int(BUDGET / one))
    if size < 2:
        return ServiceTime(0.0, one)
    return line(one, size, await _time(infer, [item] * size))


def line(one: float, size: int, many: float) -> ServiceTime:
    """The line through 1 task in ``one`` seconds and ``size`` in ``many``; no part is negative."""
    per_task = max(0.0, (many - one) / (size - 1))
    if per_task > one:
        return ServiceTime(0.0, many / size)
    return ServiceTime(one - per_task, per_task)


async def _time(infer: Callable[[Sequence[Any]], Awaitable[Any]], batch: Sequence[Any]) -> float:
    """Median seconds of a few calls, after one that is not counted."""
    seconds = list[float]()
    while len(seconds) <= _CALLS and sum(seconds) < BUDGET:
        started = time.perf_counter()
        await infer(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)
