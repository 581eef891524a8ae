"""Measuring side by side: cases in turns, medians and their spread, loop lag, memory."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from asyncinfer.stats import percentile

__all__ = ("LoopLag", "Spread", "interleaved", "median_spread", "peak_rss", "times_by_round")

#: seconds between two ticks of ``LoopLag``
_TICK = 0.001


def interleaved(
    cases: Mapping[str, Callable[[], float]], runs: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """What each case measured in each of ``runs`` rounds, in which all cases take their turn.

    Every other round goes backwards, so that what drifts meets all cases alike. The first
    ``warm_up`` rounds are not counted.
    """
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(-warm_up, runs):
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            value = cases[name]()
            if turn >= 0:
                measured[name].append(value)
    return measured


class Spread(NamedTuple):
    """A median with the least and the most of the samples."""

    median: float
    least: float
    most: float

    @property
    def relative(self) -> float:
        """How far apart the extremes are, as a part of the median."""
        return (self.most - self.least) / self.median if self.median else math.nan


def median_spread(values: Iterable[float]) -> Spread:
    """Median and extremes of the finite ``values``; all ``nan`` if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(statistics.median(finite), min(finite), max(finite))


def times_by_round(speeds: Mapping[int, float], base: Mapping[int, float]) -> float:
    """How many times as fast as ``base``: the median over the rounds of both, each by itself.

    What slows the host down for a while then meets both. ``nan`` if they share no round.
    """
    found = (speed / base[number] for number, speed in speeds.items() if base.get(number))
    return median_spread(found).median


class LoopLag:
    """How late the running event loop is: a timer of 1 ms, while the ``with`` block runs.

    Subtract what an idle loop shows: uvloop's timers alone have a grain of 1 ms.
    """

    def __init__(self) -> None:
        #: seconds by which each tick was late
        self.samples: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> LoopLag:
        self._loop = asyncio.get_running_loop()
        self._set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def p99(self) -> float:
        """The 99th percentile of the samples, in seconds."""
        return percentile(self.samples, 0.99)

    @property
    def worst(self) -> float:
        """The largest of the samples, in seconds."""
        return max(self.samples, default=0.0)

    def _set(self) -> None:
        self._due = time.perf_counter() + _TICK
        self._timer = self._loop.call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self.samples.append(max(0.0, time.perf_counter() - self._due))
        self._set()


def peak_rss() -> float:
    """The most memory this process ever held, in bytes; ``nan`` where it cannot be told."""
    try:  # Linux: not what getrusage says, which counts the parent's before exec
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return math.nan
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)
