"""The turns of torch with and without us: a loop, or a stream, for some seconds each.

What is counted begins with the first batch that is done and ends with the last one in the time:
the beginning and the end of a turn, in which some thread has nothing to do, are no part of it.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

from asyncinfer.bench.measure import LoopLag, peak_rss
from asyncinfer.bench.overhead_trials import in_turns
from asyncinfer.bench.real_devices import close_all, open_all, torch_device
from asyncinfer.bench.record import Run
from asyncinfer.bench.suite import Context
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError
from asyncinfer.model import Model
from asyncinfer.stats import percentile

__all__ = ("BEST", "NAIVE", "OURS", "Match", "long_enough", "measured", "steady")

NAIVE, BEST, OURS = "naive loop", "best bare loop", "asyncinfer"

#: rounds of the naive loop; of the others, for each repeat that was asked for
_NAIVE_ROUNDS, _ROUNDS = 3, 5
#: seconds after which no round is begun
_LIMIT = 45.0
#: seconds of a turn, and of the short form
_SECONDS, _SHORT_SECONDS = 1.0, 0.3
#: full batches of each worker in a turn at least
_CALLS = 8
#: full batches of each worker that are in the window of ours, and as many behind it
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
    #: ``asyncinfer_drivers._torch.bare``, and its ``Settings``
    bare: Any
    settings: Any


class Found(NamedTuple):
    """Images a second, and how late each tick of the event loop was."""

    rate: float
    late: Sequence[float]


def steady(marks: Iterable[tuple[float, int]], end: float) -> float:
    """Images a second between the first mark and the last one until ``end``.

    A mark is a time and how many images were done then. ``nan`` for fewer than two times.
    """
    (begin, _), *rest = sorted(mark for mark in marks if mark[0] <= end) or [(math.nan, 0)]
    if not rest or rest[-1][0] <= begin:
        return math.nan
    return sum(images for _, images in rest) / (rest[-1][0] - begin)


def long_enough(least: float, batch: int, workers: int, images_per_second: float) -> float:
    """Seconds of a turn, not below ``least``, in which each worker has calls enough."""
    return max(least, _CALLS * batch * workers / images_per_second)


def measured(match: Match, context: Context, runner: asyncio.Runner) -> list[Run]:
    """The naive loop and the best one in turns; then the best one and ours."""
    least, settings = _SHORT_SECONDS if context.short else _SECONDS, match.settings
    loop = match.bare.prepared_loop(match.bare_model, match.inputs, settings)
    rate = loop.run(least).images_per_second
    took = least if context.short else long_enough(least, settings.batch, settings.workers, rate)
    loops = {
        NAIVE: lambda: runner.run(_naive(match, least)),
        BEST: lambda: runner.run(_bare(loop, took)),
    }
    runs = _rounds(match, loops, _NAIVE_ROUNDS, context)
    stack = AsyncExitStack()
    try:
        dispatcher = runner.run(_opened(match, stack))
        turns = {
            BEST: loops[BEST],
            OURS: lambda: runner.run(_stream(dispatcher, match.inputs, took)),
        }
        return [*runs, *_rounds(match, turns, _ROUNDS * context.runs, context, len(runs))]
    finally:
        runner.run(stack.aclose())


def _rounds(
    match: Match,
    turns: dict[str, Callable[[], Found]],
    rounds: int,
    context: Context,
    before: int = 0,
) -> list[Run]:
    """So many rounds, numbered from ``before`` on: what has one number ran in one round."""

    def one(name: str) -> Run:
        context.progress(f"{match.name}, {name}")
        return _run(match, name, turns[name](), context.seed)

    cases = {name: functools.partial(one, name) for name in turns}
    found = in_turns(cases, 1 if context.short else rounds, limit=_LIMIT)
    return [
        replace(run, run=number) for runs in found.values() for number, run in enumerate(runs, 1)
    ]


async def _opened(match: Match, stack: AsyncExitStack) -> Dispatcher[Any, Any]:
    """A dispatcher with as many drivers as the best loop has workers, set as it is."""
    settings = match.settings
    devices = [
        torch_device(
            f"torch-{number}",
            threads=settings.threads,
            max_batch=settings.batch,
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
    width = max(64, _AHEAD * settings.batch * settings.workers)
    return await stack.enter_async_context(Dispatcher(opened, window=width, queue_size=width))


# ---- one turn


async def _beside(work: Callable[[], Any], took: float) -> tuple[Any, Sequence[float]]:
    """What ``work`` brings in a thread, and the ticks of its last seconds."""
    with LoopLag() as lag:
        found = await asyncio.to_thread(work)
    return found, list(_latest(lag.samples, took))


async def _naive(match: Match, took: float) -> Found:
    loop = functools.partial(match.bare.naive_loop, match.bare_model, match.inputs[:8])
    found, late = await _beside(functools.partial(loop, seconds=took), took)
    return Found(float(found.images_per_second), late)


async def _bare(loop: Any, took: float) -> Found:
    found, late = await _beside(functools.partial(loop.run, took), took)
    return Found(steady(found.marks, math.inf), late)


async def _stream(dispatcher: Dispatcher[Any, Any], inputs: Sequence[Any], took: float) -> Found:
    marks, clock = [(0.0, 0)], time.perf_counter
    with LoopLag() as lag:
        end = clock() + took
        async with dispatcher.stream(cycle(inputs)) as stream:
            async for _ in stream:
                now = clock()
                if now >= end:
                    break
                begun, count = marks[-1]
                if now < begun + _TOGETHER:
                    marks[-1] = begun, count + 1
                else:
                    marks.append((now, 1))
    await _idle(dispatcher)
    return Found(steady(marks[1:], end), lag.samples)


async def _idle(dispatcher: Dispatcher[Any, Any]) -> None:
    """Wait for the calls that were running when the stream was left."""
    while any(device.state == "busy" for device in dispatcher.stats().devices):  # noqa: ASYNC110
        await asyncio.sleep(_TOGETHER)


def _latest(samples: Sequence[float], took: float) -> Iterator[float]:
    """Those of the last seconds."""
    for late in reversed(samples):
        took -= 0.001 + late
        yield late
        if took <= 0:
            return


def _run(match: Match, name: str, found: Found, seed: int) -> Run:
    return Run(
        suite="real",
        case=f"{match.name}: torch",
        policy=name,
        devices=("torch",) * match.settings.workers if name == OURS else (),
        seed=seed,
        throughput=found.rate,
        peak_rss=peak_rss(),
        figures={
            "loop_lag_p99": percentile(found.late, 0.99),
            "loop_lag_worst": max(found.late, default=0.0),
            "settings": asdict(match.settings) if name != NAIVE else {},
        },
    )
