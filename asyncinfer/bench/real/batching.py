"""Batches of fixed sizes against adaptive ones: full speed under load, no wait when idle.

A device of a fixed size takes what is there when it is free, up to that size. The model is a small
MobileNet of random weights, which runs six times as fast in batches.
"""

from __future__ import annotations

import asyncio
import functools
import math
import statistics
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, TypeAlias

from asyncinfer._text import rate, seconds
from asyncinfer.bench.measure import median_spread
from asyncinfer.bench.overhead.trials import in_turns, loops_here, ratio
from asyncinfer.bench.real.devices import Opened, close_all, open_all, torch_device
from asyncinfer.bench.real.load import Load, closed_loop, open_loop
from asyncinfer.bench.record import Check, Outcome, Plot, Run, Table
from asyncinfer.bench.suite import Context
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError
from asyncinfer.model import resolve
from asyncinfer.stats import percentile

__all__ = ("ADAPTIVE", "batching", "checks", "latencies")

ADAPTIVE = "adaptive"
CLOSED = "closed loop"
_MODEL = "asyncinfer_drivers.models.small_net:build"
_FIXED = (1, 8, 32)
_CLIENTS = 64
#: what an adaptive batch may grow to: beyond what is of use
_MOST = 64
#: parts of the best rate in a closed loop
_LOADS = (0.2, 0.5, 0.8)
#: seconds a run of the closed loop and of an open one
_SECONDS, _OPEN_SECONDS = 1.0, 2.0
#: rounds at most, and seconds after which none is begun
_ROUNDS, _OPEN_ROUNDS = 15, 2
_LIMIT, _OPEN_LIMIT = 50.0, 40.0
#: raw samples kept of each run
_SAMPLES = 2000

#: what adaptive batches must do: of the best fixed size's rate, and in its latency
OF_BEST, OF_LATENCY = 0.95, 1.1

_Loading: TypeAlias = Callable[[Dispatcher[Any, Any]], Coroutine[Any, Any, Load]]

_NOTE = (
    "A small MobileNet of random weights on one torch device of this host, single calls of infer. "
    "Closed loop: 64 clients, each waits for its answer, in many short turns. Open loop: Poisson "
    "arrivals at a part of the best rate of the closed loop; latency counts from the time a call "
    "was to be made. Fixed sizes are upper limits: a free device takes what is there. Adaptive: up "
    f"to {_MOST}, as far as that pays by what calls have taken; none waits to be filled. Medians "
    "over the runs."
)


def batching(context: Context, outcome: Outcome) -> None:
    """Measure all ways under all loads; a line is skipped for what is missing."""
    try:
        from asyncinfer_drivers.torch_loops import inputs_of  # which needs torch

        loops, _ = loops_here()
        with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
            runs = _measured(inputs_of("small_net", 64), context, outcome, runner)
    except (AsyncInferError, ImportError) as error:
        outcome.skipped.append(f"batching: {error}")
        return
    outcome.runs += runs
    outcome.tables.append(_table(runs))
    outcome.plots.append(latencies(runs, f"open loop, {_LOADS[1]:.0%}"))


def _measured(
    inputs: Sequence[Any], context: Context, outcome: Outcome, runner: asyncio.Runner
) -> list[Run]:
    context.progress("batching, opening devices")
    settings: dict[str, dict[str, Any]] = {f"batch {s}": {"max_batch": s} for s in _FIXED}
    settings[ADAPTIVE] = {"max_batch": _MOST}
    devices = [
        torch_device(name, warmup_input=inputs[0], optimize="none", **options)
        for name, options in settings.items()
    ]
    opened, missing = runner.run(open_all(devices, resolve(_MODEL)))
    outcome.skipped += missing
    try:
        return _loaded(opened, inputs, context, runner) if opened else []
    finally:
        runner.run(close_all(opened))


def _loaded(
    ways: Sequence[Opened], inputs: Sequence[Any], context: Context, runner: asyncio.Runner
) -> list[Run]:
    stack = AsyncExitStack()
    try:
        dispatchers = {way.name: runner.run(_entered(way, stack)) for way in ways}
        closed = functools.partial(closed_loop, items=inputs, clients=_CLIENTS, seconds=_SECONDS)
        runs = _in_turns(dispatchers, {CLOSED: closed}, (_ROUNDS, _LIMIT), context, runner)
        most = max(_over(runs, CLOSED, name, "throughput") for name in dispatchers)
        loads: dict[str, _Loading] = {
            f"open loop, {part:.0%}": functools.partial(
                open_loop,
                items=inputs,
                rate=part * most,
                seconds=_OPEN_SECONDS,
                seed=context.seed,
            )
            for part in _LOADS
        }
        rounds = min(context.runs, _OPEN_ROUNDS), _OPEN_LIMIT
        return runs + _in_turns(dispatchers, loads, rounds, context, runner)
    finally:
        runner.run(stack.aclose())


async def _entered(way: Opened, stack: AsyncExitStack) -> Dispatcher[Any, Any]:
    return await stack.enter_async_context(Dispatcher([way]))


def _in_turns(
    dispatchers: Mapping[str, Dispatcher[Any, Any]],
    loads: Mapping[str, _Loading],
    rounds: tuple[int, float],
    context: Context,
    runner: asyncio.Runner,
) -> list[Run]:
    def one(way: str, load: str) -> Run:
        context.progress(f"batching: {load}, {way}")
        return _run(way, load, runner.run(loads[load](dispatchers[way])))

    cases = {
        f"{load}/{way}": functools.partial(one, way, load) for load in loads for way in dispatchers
    }
    measured = in_turns(cases, rounds[0], limit=rounds[1])
    return [
        replace(run, run=number, seed=context.seed)
        for runs in measured.values()
        for number, run in enumerate(runs, 1)
    ]


def _run(way: str, name: str, load: Load) -> Run:
    samples = load.latencies[:: max(1, len(load.latencies) // _SAMPLES)]
    return Run(
        suite="real",
        case=f"batching: {name}",
        policy=way,
        devices=("torch",),
        tasks=len(load.latencies),
        makespan=load.seconds,
        throughput=load.rate,
        latency_mean=statistics.fmean(load.latencies),
        latency_p50=percentile(load.latencies, 0.50),
        latency_p95=percentile(load.latencies, 0.95),
        latency_p99=percentile(load.latencies, 0.99),
        figures={
            "offered": load.offered,
            "latency_samples": [round(latency, 6) for latency in samples],
        },
    )


def _over(runs: Sequence[Run], load: str, policy: str, column: str) -> float:
    chosen = (r for r in runs if (r.case, r.policy) == (f"batching: {load}", policy))
    return median_spread(getattr(run, column) for run in chosen).median


def _names(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Loads and policies, in order."""
    runs = [run for run in runs if run.case.startswith("batching: ")]
    loads = dict.fromkeys(run.case.partition(": ")[2] for run in runs)
    return list(loads), list(dict.fromkeys(run.policy for run in runs))


def _table(runs: Sequence[Run]) -> Table:
    loads, policies = _names(runs)
    columns = ("load", "", "images/s", "latency mean", "p50", "p95", "p99")
    latencies = ("latency_mean", "latency_p50", "latency_p95", "latency_p99")
    rows = [
        (
            load,
            policy,
            rate(_over(runs, load, policy, "throughput")),
            *(seconds(_over(runs, load, policy, column)) for column in latencies),
        )
        for load in loads
        for policy in policies
    ]
    return Table("Fixed and adaptive batches", columns, rows, _NOTE)


def latencies(runs: Sequence[Run], load: str) -> Plot:
    """The share of calls answered within a time, each way of making batches."""

    def draw(ax: Any) -> None:
        for policy in _names(runs)[1]:
            chosen = (r for r in runs if (r.case, r.policy) == (f"batching: {load}", policy))
            found = sorted(s * 1000 for run in chosen for s in run.figures["latency_samples"])
            ax.step(found, [(place + 1) / len(found) for place in range(len(found))], label=policy)
        ax.set_xlabel("latency, ms")
        ax.set_ylabel("share of calls")
        ax.set_ylim(0, 1)
        ax.legend()

    return Plot("real-batching-latency", f"Latency by batch size, {load}", draw, _NOTE)


def checks(runs: Sequence[Run]) -> list[Check]:
    """What adaptive batches must do; nothing where they were not measured."""
    loads, policies = _names(runs)
    if ADAPTIVE not in policies:
        return []
    fixed = [policy for policy in policies if policy != ADAPTIVE]
    best = max(fixed, key=lambda policy: _over(runs, CLOSED, policy, "throughput"))
    part = ratio(runs, f"batching: {CLOSED}", ADAPTIVE, best)
    claim = f"adaptive batches >= {OF_BEST} of the best fixed size's rate, closed loop"
    found = [Check(claim, f"{part:.2f}", part >= OF_BEST)]
    idle = next((load for load in loads if load != CLOSED), None)
    if idle is not None:
        single = _over(runs, idle, fixed[0], "latency_p50")
        times = _over(runs, idle, ADAPTIVE, "latency_p50") / single if single else math.nan
        claim = f"adaptive batches: median latency <= {OF_LATENCY} x that of {fixed[0]}, {idle}"
        found.append(Check(claim, f"{times:.2f}", times <= OF_LATENCY))
    return found
