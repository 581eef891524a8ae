"""``Dispatcher.stream`` over torch against loops without it: the naive one, and the best we know.

The loops are ``asyncinfer_drivers._torch.bare``'s. They run in a thread beside an event loop that
does nothing, so that the loop's lag can be compared as well.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any, TypeAlias

from asyncinfer.bench.measure import LoopLag, median_spread, peak_rss
from asyncinfer.bench.overhead_trials import in_turns, loops_here, ratio
from asyncinfer.bench.real_devices import Opened, close_all, open_all, torch_device, with_own_steps
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.suite import Context
from asyncinfer.bench.text import rate, seconds
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError
from asyncinfer.model import Model, resolve
from asyncinfer.stats import percentile

__all__ = ("BEST", "NAIVE", "OURS", "checks", "torch_comparison")

NAIVE, BEST, OURS = "naive loop", "best bare loop", "asyncinfer"
#: what is demanded of ours: of the best loop, of the naive one, and in seconds of loop lag
OF_BEST, OF_NAIVE, LAG = 0.95, 4.0, 0.005

#: models that are none of the built-in ones: where their module comes from
_OTHERS = {"small_net": "asyncinfer_drivers._torch.small_net:build"}
#: seconds of an image in the best loop below which what we add to each is not to be seen as small
_TINY = 50e-6

#: seconds a run, and of the short form
_SECONDS, _SHORT_SECONDS = 1.5, 0.3
#: full batches of each worker in a run at least: the last one of some worker runs alone
_CALLS = 25
#: seconds after which no round is begun
_LIMIT = 75.0

#: full batches of each worker that the loops go through at least
_BATCHES = 4
#: full batches of each worker that are in the window of ours, and as many behind it
_AHEAD = 8

_NOTE = (
    "Naive: one image at a time in eager mode. Best: batches, the fastest form of the model, "
    "threads and malloc thresholds, as found by trying them. Ours: Dispatcher.stream over torch "
    "drivers with those settings. All with pre- and postprocessing, in turns; medians over the "
    f"rounds. A run has at least {_CALLS} batches of each thread. Lag: a timer of 1 ms on the "
    "event loop; bare loops run in a thread beside it."
)

#: why no check demands it of a model
_SPARED = {
    BEST: f" No check demands {OF_BEST:g} of it: an image takes under {seconds(_TINY)}.",
    NAIVE: f" No check demands {OF_NAIVE:g} x the naive loop: the best one gains less.",
}


@dataclass(frozen=True)
class _Match:
    """What is compared, and on what."""

    model: str
    inputs: Sequence[Any]
    #: ``asyncinfer_drivers._torch.bare``, and its ``Settings``
    bare: Any
    settings: Any
    #: seconds a run, of the naive loop and of the others
    naive: float
    took: float


#: images a second, and how late each tick of the event loop was
_Found: TypeAlias = tuple[float, Sequence[float]]


def torch_comparison(model: str, context: Context, outcome: Outcome) -> None:
    """Measure one model; a line is skipped where the loops or the drivers are missing."""
    try:
        bare: Any = importlib.import_module("asyncinfer_drivers._torch.bare")
        loops, _ = loops_here()
        with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
            runs = _compare(model, bare, context, runner)
    except (AsyncInferError, ImportError) as error:
        outcome.skipped.append(f"{model} against bare loops: {error}")
        return
    outcome.runs += runs
    outcome.tables.append(_table(model, runs))


def _compare(model: str, bare: Any, context: Context, runner: asyncio.Runner) -> list[Run]:
    context.progress(f"{model}, the best settings of a bare loop")
    inputs = bare.inputs_of(model, 256)
    what = _OTHERS.get(model, model)
    settings = bare.Settings(optimize="none") if context.short else bare.tune(what, inputs)
    most = _BATCHES * settings.batch * settings.workers
    inputs = [*inputs] * -(-most // len(inputs))
    inputs = inputs[:most]
    least = _SHORT_SECONDS if context.short else _SECONDS
    found = bare.best_loop(what, inputs, settings).images_per_second
    took = least if context.short else long_enough(least, settings.batch, settings.workers, found)
    return _rounds(_Match(model, inputs, bare, settings, least, took), context, runner)


def long_enough(least: float, batch: int, workers: int, images_per_second: float) -> float:
    """Seconds of a run, not below ``least``, in which the end of it is but a small part."""
    return max(least, _CALLS * batch * workers / images_per_second)


@asynccontextmanager
async def _drivers(match: _Match) -> AsyncIterator[Sequence[Opened]]:
    """As many drivers as the best loop has workers, set as it is.

    They are open only while they are measured: malloc's thresholds are the whole process's.
    """
    settings = match.settings
    devices = [
        torch_device(
            f"torch-{number}",
            threads=settings.threads,
            max_batch=settings.batch,
            optimize=settings.optimize,
            concurrency=2,
            **({"warmup_input": match.inputs[0]} if match.model in _OTHERS else {}),
        )
        for number in range(1, settings.workers + 1)
    ]
    opened, missing = await open_all(devices, _model(match.model))
    try:
        if missing:
            raise AsyncInferError("; ".join(missing))
        yield opened
    finally:
        await close_all(opened)


def _rounds(match: _Match, context: Context, runner: asyncio.Runner) -> list[Run]:
    work: dict[str, Callable[[], Coroutine[Any, Any, _Found]]] = {
        NAIVE: lambda: _loop(match.bare.naive_loop, match, match.naive, match.inputs[:8]),
        BEST: lambda: _loop(match.bare.best_loop, match, match.took, match.inputs, match.settings),
        OURS: lambda: _stream(match),
    }
    numbers = {name: iter(range(10**9)) for name in work}

    def one(name: str) -> Run:
        context.progress(f"{match.model}, {name}")
        run = _run(match, name, *runner.run(work[name]()))
        return replace(run, run=next(numbers[name]), seed=context.seed)  # the warm-up is 0

    cases = {name: functools.partial(one, name) for name in work}
    measured = in_turns(cases, 1 if context.short else context.runs, limit=_LIMIT)
    return [run for runs in measured.values() for run in runs]


def _model(name: str) -> Model:
    """The model as drivers run it."""
    return resolve(_OTHERS[name]) if name in _OTHERS else with_own_steps(name)


async def _loop(loop: Callable[..., Any], match: _Match, took: float, *arguments: Any) -> _Found:
    """The ticks while it ran, without those while it got ready."""
    with LoopLag() as lag:
        model = _OTHERS.get(match.model, match.model)
        found = await asyncio.to_thread(loop, model, *arguments, seconds=took)
    return float(found.images_per_second), list(_latest(lag.samples, took))


def _latest(samples: Sequence[float], took: float) -> Iterator[float]:
    """Those of the last seconds."""
    for late in reversed(samples):
        took -= 0.001 + late
        yield late
        if took <= 0:
            return


async def _stream(match: _Match) -> _Found:
    """A stream of about that many seconds, to its last result."""
    width = max(64, _AHEAD * match.settings.batch * match.settings.workers)
    async with (
        _drivers(match) as opened,
        Dispatcher(opened, window=width, queue_size=width) as dispatcher,
    ):
        async for _ in dispatcher.stream(match.inputs):
            pass  # warm
        with LoopLag() as lag:
            count, start = 0, time.perf_counter()
            async for _ in dispatcher.stream(_until(start + match.took, match.inputs)):
                count += 1
            return count / (time.perf_counter() - start), lag.samples


def _until(end: float, inputs: Sequence[Any]) -> Iterator[Any]:
    """The inputs again and again until then, all of them at least."""
    for number, x in enumerate(cycle(inputs)):
        if number >= len(inputs) and time.perf_counter() >= end:
            return
        yield x


def _run(match: _Match, name: str, found: float, late: Sequence[float]) -> Run:
    return Run(
        suite="real",
        case=f"{match.model}: torch",
        policy=name,
        devices=("torch",) * match.settings.workers if name == OURS else (),
        throughput=found,
        peak_rss=peak_rss(),
        figures={
            "loop_lag_p99": percentile(late, 0.99),
            "loop_lag_worst": max(late, default=0.0),
            "settings": asdict(match.settings) if name != NAIVE else {},
        },
    )


def _over(runs: Sequence[Run], model: str, policy: str) -> list[Run]:
    return [run for run in runs if (run.case, run.policy) == (f"{model}: torch", policy)]


def _times(runs: Sequence[Run], model: str, base: str, policy: str) -> float:
    return ratio(runs, f"{model}: torch", policy, base)


def _table(model: str, runs: Sequence[Run]) -> Table:
    rows: list[Sequence[str]] = []
    order = (NAIVE, BEST, OURS)
    for name in order:
        group = _over(runs, model, name)
        found = median_spread(run.throughput for run in group)
        late = median_spread(run.figures["loop_lag_p99"] for run in group).median
        spread = f"{rate(found.median)} ({rate(found.least)}-{rate(found.most)})"
        rows.append((name, spread, f"{_times(runs, model, BEST, name):.2f}", seconds(late)))
    told = ", ".join(f"{k} {v}" for k, v in _over(runs, model, BEST)[0].figures["settings"].items())
    columns = ("", "images/s", "of the best", "loop lag p99")
    rates = {name: median_spread(r.throughput for r in _over(runs, model, name)) for name in order}
    demanded = dict(_demands({name: found.median for name, found in rates.items()}))
    note = "".join(text for base, text in _SPARED.items() if base not in demanded)
    title = f"{model}: torch with and without us"
    return Table(title, columns, rows, f"{_NOTE} Here: {told}.{note}")


def checks(runs: Sequence[Run]) -> list[Check]:
    """What is demanded, for each model that was measured."""
    models = dict.fromkeys(r.case.partition(":")[0] for r in runs if r.case.endswith(": torch"))
    return [check for model in models for check in _checks(runs, model)]


def _demands(rates: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """What can be demanded of a model: more for each image than Python, and batches that gain."""
    if rates[BEST] * _TINY < 1:
        yield BEST, OF_BEST
    if rates[BEST] >= OF_NAIVE * rates[NAIVE]:
        yield NAIVE, OF_NAIVE


def _checks(runs: Sequence[Run], model: str) -> list[Check]:
    groups = {name: _over(runs, model, name) for name in (NAIVE, BEST, OURS)}
    rates = {n: median_spread(r.throughput for r in g).median for n, g in groups.items()}
    lags = {
        n: median_spread(r.figures["loop_lag_p99"] for r in g).median for n, g in groups.items()
    }
    why = ", ".join(f"{name} {rate(found)} images/s" for name, found in rates.items())
    found = [
        Check(
            f"{model}: stream >= {least:g} x the {base}",
            f"{times:.2f} x",
            times >= least,
            why,
        )
        for base, least in _demands(rates)
        for times in (_times(runs, model, base, OURS),)
    ]
    later = lags[OURS] - lags[BEST]
    claim = f"{model}: p99 loop lag < {seconds(LAG)} beyond that beside the {BEST}"
    return [*found, Check(claim, seconds(later), later < LAG)]
