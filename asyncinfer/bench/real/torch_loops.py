"""``Dispatcher.stream`` over torch against loops without it: the naive one, and the best we know.

The loops are ``asyncinfer_drivers.torch_loops``'s. They run in a thread beside an event loop that
does nothing, so that the loop's lag can be compared as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from asyncinfer._text import rate, seconds
from asyncinfer.bench.measure import median_spread
from asyncinfer.bench.overhead.trials import loops_here, ratio
from asyncinfer.bench.real.devices import with_own_steps
from asyncinfer.bench.real.torch_stream import Match
from asyncinfer.bench.real.torch_turns import BEST, NAIVE, OURS, TINY, heavy, measured
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.suite import Context
from asyncinfer.errors import AsyncInferError
from asyncinfer.model import resolve

__all__ = ("BEST", "NAIVE", "OURS", "checks", "torch_comparison")

#: what is demanded of ours: of the best loop, of the naive one, and in seconds of loop lag
OF_BEST, OF_NAIVE, LAG = 0.95, 4.0, 0.005

#: models that are none of the built-in ones: where their module comes from
_OTHERS = {"small_net": "asyncinfer_drivers.models.small_net:build"}
#: full batches of each worker that the loops go through at least
_BATCHES = 4

_NOTE = (
    "Naive: one image at a time in eager mode. Best: batches, the fastest form of the model, "
    "threads and malloc thresholds, as found by trying them. Ours: Dispatcher.stream over torch "
    "drivers with those settings; some of those batches make one call of a driver (max_batch), "
    "which gives them to its model one after another (micro_batch): each call is a hand-over. All "
    "with pre- and postprocessing. The best one takes short turns with each of the others; the "
    "rate of a turn is the slope of images done over time. Medians over the turns; of the best: "
    "the median of neighbouring turns' ratios. Lag: a timer of 1 ms on the event loop; bare loops "
    "run in a thread beside it."
)

#: why no check demands it of a model
_SPARED = {
    BEST: f" No check demands {OF_BEST:g} of it: an image takes under {seconds(TINY)}.",
    NAIVE: f" No check demands {OF_NAIVE:g} x the naive loop: the best one gains less.",
}


def torch_comparison(model: str, context: Context, outcome: Outcome) -> None:
    """Measure one model; a line is skipped where the loops or the drivers are missing."""
    try:
        loops, _ = loops_here()
        with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
            runs = measured(_match(model, context), context, runner)
    except (AsyncInferError, ImportError) as error:
        outcome.skipped.append(f"{model} against bare loops: {error}")
        return
    outcome.runs += runs
    outcome.tables.append(_table(model, runs))


def _match(name: str, context: Context) -> Match:
    from asyncinfer_drivers.torch_loops import Settings, inputs_of, tune  # which need torch

    context.progress(f"{name}, the best settings of a bare loop")
    other = _OTHERS.get(name)
    inputs = inputs_of(name, 256)
    settings = Settings(optimize="none") if context.short else tune(other or name, inputs)
    most = _BATCHES * settings.batch * settings.workers
    inputs = ([*inputs] * -(-most // len(inputs)))[:most]
    model = resolve(other) if other else with_own_steps(name)
    options = {"warmup_input": inputs[0]} if other else {}
    return Match(name, other or name, model, options, inputs, settings)


def _over(runs: Sequence[Run], model: str, policy: str) -> list[Run]:
    return [run for run in runs if (run.case, run.policy) == (f"{model}: torch", policy)]


def _times(runs: Sequence[Run], model: str, base: str, policy: str) -> float:
    """How many times as fast, by rounds; the naive loop and ours share none, but the best one."""
    case = f"{model}: torch"
    if (base, policy) == (NAIVE, OURS):
        return ratio(runs, case, OURS, BEST) * ratio(runs, case, BEST, NAIVE)
    return ratio(runs, case, policy, base)


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
    told += f"; ours {_over(runs, model, OURS)[0].figures['settings']['batch']} images a call"
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
    if heavy(rates[BEST]):
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
