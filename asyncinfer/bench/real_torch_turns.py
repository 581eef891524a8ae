"""The turns of torch with and without us: a loop, or a stream, for some seconds each."""

from __future__ import annotations

import asyncio
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

from asyncinfer.bench.measure import LoopLag, peak_rss
from asyncinfer.bench.overhead_trials import in_turns
from asyncinfer.bench.real_torch_stream import Found, Match, Ours, steady
from asyncinfer.bench.record import Run
from asyncinfer.bench.suite import Context
from asyncinfer.stats import percentile

__all__ = ("BEST", "NAIVE", "OURS", "TINY", "heavy", "long_enough", "measured")

NAIVE, BEST, OURS = "naive loop", "best bare loop", "asyncinfer"

#: rounds of the naive loop; of the others, for each repeat that was asked for
_NAIVE_ROUNDS, _ROUNDS = 8, 12
#: seconds after which no round is begun; and for a model that is not ``heavy``
_LIMIT, _LIGHT_LIMIT = 80.0, 25.0
#: seconds of an image in the best loop below which what we add to each is not to be seen as small
TINY = 50e-6
#: seconds of a turn, and of the short form
_SECONDS, _SHORT_SECONDS = 0.5, 0.3
#: full batches of each worker in a turn at least
_CALLS = 8
#: batches of ours that are tried: so many times the best loop's; and turns of each
_LARGER, _TRIES = (2, 4), 8
#: seconds of a call from which a hand-over is too little of it for that
_LONG_CALL = 0.035


def long_enough(least: float, batch: int, workers: int, images_per_second: float) -> float:
    """Seconds of a turn, not below ``least``, in which each worker has calls enough."""
    return max(least, _CALLS * batch * workers / images_per_second)


def heavy(images_per_second: float) -> bool:
    """Whether an image takes the best loop so long that its rate can be demanded of ours."""
    return images_per_second * TINY < 1


def measured(match: Match, context: Context, runner: asyncio.Runner) -> list[Run]:
    """The naive loop and the best one in turns; then the best one and ours."""
    least, settings = _SHORT_SECONDS if context.short else _SECONDS, match.settings
    loop = match.bare.prepared_loop(match.bare_model, match.inputs, settings)
    rate = loop.run(least).images_per_second
    loops = {
        NAIVE: lambda: runner.run(_naive(match, least)),
        BEST: lambda: runner.run(_bare(loop, _took(settings, rate, context))),
    }
    runs = _rounds(match, loops, _NAIVE_ROUNDS, context)
    stack = AsyncExitStack()
    try:
        ours = _ours(match, stack, rate, context, runner)
        turns = {BEST: loops[BEST], OURS: lambda: runner.run(_turn(ours, match, rate, context))}
        limit = _LIMIT if heavy(rate) else _LIGHT_LIMIT
        many, before = _ROUNDS * context.runs, len(runs)
        runs += _rounds(match, turns, many, context, limit=limit, before=before, ours=ours)
        return runs
    finally:
        runner.run(stack.aclose())


def _took(settings: Any, images_per_second: float, context: Context) -> float:
    """Seconds of a turn with these settings."""
    if context.short:
        return _SHORT_SECONDS
    return long_enough(_SECONDS, settings.batch, settings.workers, images_per_second)


def _ours(
    match: Match, stack: AsyncExitStack, rate: float, context: Context, runner: asyncio.Runner
) -> Ours:
    """Streams with the best loop's settings, or in larger batches if a few turns are faster."""
    ours = {
        settings.batch: runner.run(Ours.opened(match, settings, stack))
        for settings in _sizes(match, rate, context)
    }
    if len(ours) == 1:
        return ours[match.settings.batch]

    def one(batch: int) -> float:
        context.progress(f"{match.name}, {OURS} in batches of {batch}")
        return runner.run(_turn(ours[batch], match, rate, context)).rate

    cases = {str(batch): functools.partial(one, batch) for batch in ours}
    found = in_turns(cases, _TRIES, warm_up=0)
    return ours[max(ours, key=lambda batch: statistics.median(found[str(batch)]))]


async def _turn(ours: Ours, match: Match, rate: float, context: Context) -> Found:
    return await ours.turn(match.inputs, _took(ours.settings, rate, context))


def _sizes(match: Match, images_per_second: float, context: Context) -> list[Any]:
    """The best loop's settings, and such with larger batches where a call of those is short.

    To us each call is a hand-over of about a millisecond. Where that is little, larger batches gain
    nothing, and a few turns would show which of them was lucky.
    """
    first = match.settings
    if context.short or first.batch * first.workers / images_per_second >= _LONG_CALL:
        return [first]
    larger = [first.batch * times for times in _LARGER]
    tried = [batch for batch in larger if batch <= match.bare.BATCHES[-1]]
    return [first, *(replace(first, batch=batch) for batch in tried)]


def _rounds(
    match: Match,
    turns: dict[str, Callable[[], Found]],
    rounds: int,
    context: Context,
    *,
    limit: float = _LIMIT,
    before: int = 0,
    ours: Ours | None = None,
) -> list[Run]:
    """So many rounds, numbered from ``before`` on: what has one number ran in one round."""

    def one(name: str) -> Run:
        context.progress(f"{match.name}, {name}")
        settings = match.settings if ours is None or name != OURS else ours.settings
        return _run(match, name, turns[name](), context.seed, settings)

    cases = {name: functools.partial(one, name) for name in turns}
    found = in_turns(cases, 1 if context.short else rounds, limit=limit)
    return [
        replace(run, run=number)
        for runs in found.values()
        for number, run in enumerate(runs, before + 1)
    ]


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
    return Found(steady(found.marks), late)


def _latest(samples: Sequence[float], took: float) -> Iterator[float]:
    """Those of the last seconds."""
    for late in reversed(samples):
        took -= 0.001 + late
        yield late
        if took <= 0:
            return


def _run(match: Match, name: str, found: Found, seed: int, settings: Any) -> Run:
    return Run(
        suite="real",
        case=f"{match.name}: torch",
        policy=name,
        devices=("torch",) * settings.workers if name == OURS else (),
        seed=seed,
        throughput=found.rate,
        peak_rss=peak_rss(),
        figures={
            "loop_lag_p99": percentile(found.late, 0.99),
            "loop_lag_worst": max(found.late, default=0.0),
            "settings": asdict(settings) if name != NAIVE else {},
        },
    )
