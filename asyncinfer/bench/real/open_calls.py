"""Single calls that come at random: ``infer`` beside a batching loop written by hand.

At parts of the rate that both can have, so that what is measured is how calls wait, and not a queue
that grows for as long as the load lasts.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import statistics
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from asyncinfer._text import rate, seconds
from asyncinfer.bench.measure import median_spread
from asyncinfer.bench.overhead.trials import in_turns, loops_here
from asyncinfer.bench.real.by_hand import MicroBatcher
from asyncinfer.bench.real.devices import close_all, open_all, torch_device, with_own_steps
from asyncinfer.bench.real.load import Answers, Load, full_loop, open_loop
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.suite import Context
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError
from asyncinfer.stats import percentile

__all__ = ("BY_HAND", "OURS", "checks", "open_calls")

OURS, BY_HAND = "asyncinfer", "batching loop by hand"
_MODEL = "digits"
_CASE = "calls at random"
#: devices, or threads of the loop by hand; most tasks of a call; calls that are waited for at once
_WORKERS, _MOST, _CLIENTS = 2, 64, 64
#: parts of the rate, and the one that is judged
_PARTS, _JUDGED = (0.2, 0.5, 0.8, 0.95), 0.8
#: seconds of a load; rounds; seconds after which none is begun
_SECONDS, _ROUNDS, _LIMIT = 1.0, 3, 40.0
#: the median and the 99th percentile, in service times of the batches; beside the loop by hand
_P50, _P99, _OF_HAND = 5.0, 20.0, 1.2

_Loading: TypeAlias = Callable[[Answers], Coroutine[Any, Any, Load]]

_NOTE = (
    f"Poisson arrivals of single images, {_WORKERS} torch threads of this host, up to {_MOST} in a "
    "call. Latency counts from the time a call was to be made. The rate is what the slower of the "
    f"two answers if {_CLIENTS} calls of the same client are under way at all times: clients that "
    "only wait for their own answers cost less, so that theirs is not to be had from calls that "
    "come at random. What is there when the loads begin is frozen (gc.freeze), for both: "
    "collections of all that torch has loaded stop the loop for a tenth of a second and more. A "
    "service time is the mean of the calls of the driver, or of the loop's, in that load. Medians "
    "over the rounds."
)


class _Way(NamedTuple):
    """One way to have calls answered; ``done`` tells its batches, and their seconds, so far."""

    target: Answers
    done: Callable[[], tuple[int, float]]


def open_calls(context: Context, outcome: Outcome) -> None:
    """Measure both under all loads; a line is skipped for what is missing."""
    try:
        loops, _ = loops_here()
        with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
            runs = _measured(context, outcome, runner)
    except (AsyncInferError, ImportError) as error:
        outcome.skipped.append(f"{_CASE}: {error}")
        return
    if runs:
        outcome.runs += runs
        outcome.tables.append(_table(runs))


def _measured(context: Context, outcome: Outcome, runner: asyncio.Runner) -> list[Run]:
    from asyncinfer_drivers.torch_loops import Settings, inputs_of, prepared_loop  # need torch

    context.progress(f"{_CASE}, opening devices")
    inputs = inputs_of(_MODEL, 1024)
    settings = Settings(batch=_MOST, optimize="freeze", workers=_WORKERS)
    loop = prepared_loop(_MODEL, inputs[:_MOST], settings)
    options = {"warmup_input": inputs[0], "optimize": "freeze", "max_batch": _MOST}
    devices = [torch_device(f"torch-{number}", **options) for number in range(1, _WORKERS + 1)]
    stack = AsyncExitStack()
    try:
        opened, missing = runner.run(open_all(devices, with_own_steps(_MODEL)))
        outcome.skipped += missing
        stack.push_async_callback(close_all, opened)
        if missing:
            return []
        by_hand = MicroBatcher(loop.answer, workers=_WORKERS, most=_MOST)
        ways = runner.run(_entered(Dispatcher(opened, wait_for="all"), by_hand, stack))
        return _loaded(ways, inputs, context, runner)
    finally:
        runner.run(stack.aclose())


async def _entered(
    dispatcher: Dispatcher[Any, Any], by_hand: MicroBatcher, stack: AsyncExitStack
) -> dict[str, _Way]:
    await stack.enter_async_context(dispatcher)
    await stack.enter_async_context(by_hand)

    def done() -> tuple[int, float]:
        devices = dispatcher.stats().devices
        return sum(one.batches for one in devices), sum(one.busy_seconds for one in devices)

    return {
        OURS: _Way(dispatcher, done),
        BY_HAND: _Way(by_hand, lambda: (by_hand.batches, by_hand.seconds)),
    }


def _loaded(
    ways: dict[str, _Way], inputs: Sequence[Any], context: Context, runner: asyncio.Runner
) -> list[Run]:

    def turns(loads: dict[str, _Loading]) -> list[Run]:
        cases = {
            f"{load}/{name}": functools.partial(_one, ways[name], name, load, loading)
            for load, loading in loads.items()
            for name in ways
        }
        found = in_turns(cases, _ROUNDS, limit=_LIMIT)
        return [replace(run, run=n) for runs in found.values() for n, run in enumerate(runs, 1)]

    def _one(way: _Way, name: str, load: str, loading: _Loading) -> Run:
        context.progress(f"{_CASE}: {load}, {name}")
        before = way.done()
        found = runner.run(loading(way.target))
        batches, busy = (now - then for now, then in zip(way.done(), before, strict=True))
        return _run(name, load, found, busy / max(1, batches), context.seed)

    gc.collect()
    gc.freeze()
    try:
        full = functools.partial(full_loop, items=inputs, clients=_CLIENTS, seconds=_SECONDS)
        runs = turns({"full": full})
        most = min(_over(runs, "full", name, "throughput") for name in ways)
        at_random = functools.partial(open_loop, items=inputs, seconds=_SECONDS, seed=context.seed)
        return runs + turns(
            {f"{part:.0%}": functools.partial(at_random, rate=part * most) for part in _PARTS}
        )
    finally:
        gc.unfreeze()


def _run(name: str, load: str, found: Load, service: float, seed: int) -> Run:
    latencies = found.latencies
    return Run(
        suite="real",
        case=f"{_CASE}: {load}",
        policy=name,
        devices=("torch",) * _WORKERS,
        tasks=len(latencies),
        seed=seed,
        makespan=found.seconds,
        throughput=found.rate,
        latency_mean=statistics.fmean(latencies),
        latency_p50=percentile(latencies, 0.50),
        latency_p95=percentile(latencies, 0.95),
        latency_p99=percentile(latencies, 0.99),
        figures={"offered": found.offered, "service": service},
    )


def _chosen(runs: Sequence[Run], load: str, name: str) -> list[Run]:
    return [run for run in runs if (run.case, run.policy) == (f"{_CASE}: {load}", name)]


def _over(runs: Sequence[Run], load: str, name: str, column: str) -> float:
    return median_spread(getattr(run, column) for run in _chosen(runs, load, name)).median


def _service(runs: Sequence[Run], load: str, name: str) -> float:
    return median_spread(run.figures["service"] for run in _chosen(runs, load, name)).median


def _table(runs: Sequence[Run]) -> Table:
    loads = dict.fromkeys(r.case.partition(": ")[2] for r in runs)
    rows = [
        (
            load,
            name,
            rate(_over(runs, load, name, "throughput")),
            *(seconds(_over(runs, load, name, c)) for c in ("latency_p50", "latency_p99")),
            seconds(_service(runs, load, name)),
        )
        for load in loads
        for name in (OURS, BY_HAND)
    ]
    columns = ("load", "", "images/s", "latency p50", "p99", "service time")
    return Table(f"{_MODEL}: {_CASE}", columns, rows, _NOTE)


def checks(runs: Sequence[Run]) -> list[Check]:
    """What latency must be at the rate that is judged; nothing where it was not measured."""
    load = f"{_JUDGED:.0%}"
    return list(_checks(runs, load)) if _chosen(runs, load, OURS) else []


def _checks(runs: Sequence[Run], load: str) -> Iterator[Check]:
    service = _service(runs, load, OURS)
    for column, most in (("latency_p50", _P50), ("latency_p99", _P99)):
        name = column.rpartition("_")[2]
        found, hand = (_over(runs, load, way, column) for way in (OURS, BY_HAND))
        claim = f"{_CASE}, {load}: {name} <= {most:g} service times of its batches"
        yield Check(claim, f"{found / service:.2f}", found <= most * service)
        claim = f"{_CASE}, {load}: {name} <= {_OF_HAND:g} x that of the {BY_HAND}"
        yield Check(claim, f"{found / hand:.2f} x", found <= _OF_HAND * hand)
