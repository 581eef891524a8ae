"""The turns of torch with and without us: a loop, or a stream, for some seconds each."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypeVar

from asyncinfer.bench.measure import LoopLag, peak_rss
from asyncinfer.bench.overhead.trials import in_turns
from asyncinfer.bench.real.torch_stream import Found, Match, Ours, steady
from asyncinfer.bench.record import Run
from asyncinfer.bench.suite import Context
from asyncinfer.stats import percentile

if TYPE_CHECKING:
    from asyncinfer_drivers.torch_loops import BestLoop, Settings

__all__ = ("BEST", "NAIVE", "OURS", "TINY", "heavy", "images_of_a_call", "long_enough", "measured")

T = TypeVar("T")

NAIVE, BEST, OURS = "naive loop", "best bare loop", "asyncinfer"

#: rounds of the naive loop; of the others, for each repeat that was asked for
_NAIVE_ROUNDS, _ROUNDS = 10, 12
#: seconds after which no round is begun; and for a model that is not ``heavy``
_LIMIT, _LIGHT_LIMIT = 60.0, 20.0
#: seconds of an image in the best loop below which what we add to each is not to be seen as small
TINY = 50e-6
#: seconds of a turn; of the naive loop, which does few images; and of the short form
_SECONDS, _NAIVE_SECONDS, _SHORT_SECONDS = 0.5, 1.0, 0.3
#: full batches of each worker in a turn at least
_CALLS = 8
#: seconds of a call of ours, and batches of the best loop in it at most
_CALL, _MOST_BATCHES = 0.15, 16


def long_enough(least: float, batch: int, workers: int, images_per_second: float) -> float:
    """Seconds of a turn, not below ``least``, in which each worker has calls enough."""
    return max(least, _CALLS * batch * workers / images_per_second)


def heavy(images_per_second: float) -> bool:
    """Whether an image takes the best loop so long that its rate can be demanded of ours."""
    return images_per_second * TINY < 1


def measured(match: Match, context: Context, runner: asyncio.Runner) -> list[Run]:
    """The naive loop and the best one in turns; then the best one and ours."""
    from asyncinfer_drivers.torch_loops import prepared_loop

    least, naive = (_SHORT_SECONDS,) * 2 if context.short else (_SECONDS, _NAIVE_SECONDS)
    settings = match.settings
    loop = prepared_loop(match.bare_model, match.inputs, settings)
    rate = loop.run(least).images_per_second
    loops = {
        NAIVE: lambda: runner.run(_naive(match, naive)),
        BEST: lambda: runner.run(_bare(loop, _took(settings, rate, context))),
    }
    runs = _rounds(match, loops, _NAIVE_ROUNDS, context)
    stack = AsyncExitStack()
    try:
        batch = settings.batch if context.short else images_of_a_call(settings, rate)
        ours = runner.run(Ours.opened(match, batch, stack))
        took = _took(replace(settings, batch=batch), rate, context)
        turns = {BEST: loops[BEST], OURS: lambda: runner.run(ours.turn(match.inputs, took))}
        limit = _LIMIT if heavy(rate) else _LIGHT_LIMIT
        many, before = _ROUNDS * context.runs, len(runs)
        runs += _rounds(match, turns, many, context, limit=limit, before=before, batch=batch)
        return runs
    finally:
        runner.run(stack.aclose())


def _took(settings: Settings, images_per_second: float, context: Context) -> float:
    """Seconds of a turn with these settings."""
    if context.short:
        return _SHORT_SECONDS
    return long_enough(_SECONDS, settings.batch, settings.workers, images_per_second)


def images_of_a_call(settings: Settings, images_per_second: float) -> int:
    """Images of one call of ours: some of the best loop's batches, for one hand-over.

    As many as take ``_CALL`` seconds, in which a hand-over of about a millisecond is little.
    """
    batches = math.ceil(_CALL * images_per_second / (settings.batch * settings.workers))
    return settings.batch * min(_MOST_BATCHES, batches)


def _rounds(
    match: Match,
    turns: dict[str, Callable[[], Found]],
    rounds: int,
    context: Context,
    *,
    limit: float = _LIMIT,
    before: int = 0,
    batch: int = 1,
) -> list[Run]:
    """So many rounds, numbered from ``before`` on: what has one number ran in one round.

    ``batch`` is how many images a call of ours has.
    """

    def one(name: str) -> Run:
        context.progress(f"{match.name}, {name}")
        return _run(match, name, turns[name](), context.seed, batch)

    cases = {name: functools.partial(one, name) for name in turns}
    found = in_turns(cases, 1 if context.short else rounds, limit=limit)
    return [
        replace(run, run=number)
        for runs in found.values()
        for number, run in enumerate(runs, before + 1)
    ]


# ---- one turn


async def _beside(work: Callable[[], T], took: float) -> tuple[T, Sequence[float]]:
    """What ``work`` brings in a thread, and the ticks of its last seconds."""
    with LoopLag() as lag:
        found = await asyncio.to_thread(work)
    return found, list(_latest(lag.samples, took))


async def _naive(match: Match, took: float) -> Found:
    from asyncinfer_drivers.torch_loops import naive_loop

    loop = functools.partial(naive_loop, match.bare_model, match.inputs[:8], seconds=took)
    found, late = await _beside(loop, took)
    return Found(found.images_per_second, late)


async def _bare(loop: BestLoop, took: float) -> Found:
    found, late = await _beside(functools.partial(loop.run, took), took)
    return Found(steady(found.marks), late)


def _latest(samples: Sequence[float], took: float) -> Iterator[float]:
    """Those of the last seconds."""
    for late in reversed(samples):
        took -= 0.001 + late
        yield late
        if took <= 0:
            return


def _run(match: Match, name: str, found: Found, seed: int, batch: int) -> Run:
    told = {} if name == NAIVE else asdict(match.settings)
    if name == OURS:
        told |= {"batch": batch, "micro_batch": match.settings.batch}
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
            "settings": told,
        },
    )
