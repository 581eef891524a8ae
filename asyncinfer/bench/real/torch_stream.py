"""Ours beside the bare loops: streams over torch drivers, for some seconds each.

What is counted begins with the first batch that is done and ends with the last one in the time:
the beginning and the end of a turn, in which some thread has nothing to do, are no part of it.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncinfer.bench.measure import LoopLag
from asyncinfer.bench.real.devices import close_all, open_all, torch_device
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError
from asyncinfer.model import Model
from asyncinfer.stats import DeviceState

if TYPE_CHECKING:
    from asyncinfer_drivers.torch_loops import Settings

__all__ = ("Found", "Match", "Ours", "steady")

#: full batches of each worker that are in the window, and as many behind it
_AHEAD = 8
#: results that come within so many seconds came together
_TOGETHER = 0.001


@dataclass(frozen=True)
class Match:
    """What is compared, and on what."""

    name: str
    #: the model as the bare loops take it, and as drivers do
    bare_model: Any
    model: Model
    #: options of the drivers besides those that the settings say
    options: dict[str, Any]
    inputs: Sequence[Any]
    #: of the best bare loop
    settings: Settings


class Found(NamedTuple):
    """Images a second, and how late each tick of the event loop was."""

    rate: float
    late: Sequence[float]


def steady(marks: Iterable[tuple[float, int]]) -> float:
    """Images a second: the slope of the line through the marks, by least squares.

    A mark is a time and how many images were done then; it stands for the middle of those. To
    count from the first mark to the last would give too much where workers finish side by side: a
    fourteenth for two with eight calls each. ``nan`` for fewer than two times.
    """
    done, times, middles = 0, list[float](), list[float]()
    for at, images in sorted(marks):
        times.append(at)
        middles.append(done + images / 2)
        done += images
    if len(set(times)) < 2:
        return math.nan
    return statistics.linear_regression(times, middles).slope


@dataclass(frozen=True)
class Ours:
    """A dispatcher with as many drivers as the best loop has workers."""

    dispatcher: Dispatcher[Any, Any]

    @classmethod
    async def opened(cls, match: Match, batch: int, stack: AsyncExitStack) -> Ours:
        """Open it; ``stack`` closes it, and its drivers.

        A call of a driver has ``batch`` images, of which its model gets the best loop's batches.
        """
        settings = match.settings
        devices = [
            torch_device(
                f"torch-{number}",
                threads=settings.threads,
                max_batch=batch,
                micro_batch=settings.batch,
                optimize=settings.optimize,
                concurrency=2,
                **match.options,
            )
            for number in range(1, settings.workers + 1)
        ]
        opened, missing = await open_all(devices, match.model)
        stack.push_async_callback(close_all, opened)
        if missing:
            raise AsyncInferError("; ".join(missing))
        width = max(64, _AHEAD * batch * settings.workers)
        dispatcher = Dispatcher(opened, window=width, queue_size=width, wait_for="all")
        return cls(await stack.enter_async_context(dispatcher))

    async def turn(self, inputs: Sequence[Any], took: float) -> Found:
        """Stream for so many seconds; all devices are free when it ends."""
        marks, clock = list[tuple[float, int]](), time.perf_counter
        with LoopLag() as lag:
            end = clock() + took
            begun, count, later = 0.0, 0, 0.0
            async with self.dispatcher.stream(cycle(inputs)) as stream:
                async for _ in stream:
                    now = clock()
                    if now >= later:
                        marks.append((begun, count))
                        if now >= end:
                            break
                        begun, count, later = now, 0, now + _TOGETHER
                    count += 1
        await _idle(self.dispatcher)
        return Found(steady(marks[1:]), lag.samples)


async def _idle(dispatcher: Dispatcher[Any, Any]) -> None:
    """Wait for the calls that were running when the stream was left."""
    while any(device.state is DeviceState.BUSY for device in dispatcher.stats().devices):  # noqa: ASYNC110
        await asyncio.sleep(_TOGETHER)
