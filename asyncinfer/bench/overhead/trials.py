"""Trials of one section: measured in turns on fresh event loops, and shown side by side."""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from asyncinfer._text import rate
from asyncinfer.bench.measure import Spread, median_spread, peak_rss, times_by_round
from asyncinfer.bench.record import Run, Table
from asyncinfer.bench.suite import Context

__all__ = (
    "Loops",
    "Trial",
    "Work",
    "compared",
    "in_turns",
    "loops_here",
    "measure",
    "ratio",
    "throughput",
)

T = TypeVar("T")

#: makes an event loop, by the name of its package
Loops: TypeAlias = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]
#: does that many tasks; may bring figures
Work: TypeAlias = Callable[[int], Awaitable[Mapping[str, Any] | None]]

#: what part of the tasks the short form runs, and its rounds
_SHORT, _SHORT_ROUNDS = 20, 2


@dataclass(frozen=True)
class Trial:
    """One way to do a section's work."""

    name: str
    work: Work
    #: tasks a run, so that all take about as long
    tasks: int
    #: a package it needs besides ours
    module: str = ""
    max_batch: int = 1


def loops_here() -> tuple[Loops, list[str]]:
    """The event loops that are installed, and a line for each that is not."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        loops["uvloop"] = importlib.import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        return loops, ["on uvloop: not installed (pip install uvloop)"]
    return loops, []


def measure(
    section: str, trials: Sequence[Trial], loops: Loops, context: Context, rounds: int = 1
) -> tuple[list[Run], list[str]]:
    """All trials that can be run on all loops, ``rounds`` times for each repeat asked for.

    And a line for each that cannot be run.
    """
    present, skipped = _present(trials)
    cases: dict[str, Callable[[], Run]] = {}
    for loop, factory in loops.items():
        for trial in present:
            cases[f"{loop}/{trial.name}"] = _case(section, trial, loop, factory, context)
    many = min(context.runs, _SHORT_ROUNDS) if context.short else rounds * context.runs
    measured = in_turns(cases, many)
    return [run for runs in measured.values() for run in runs], skipped


def in_turns(
    cases: Mapping[str, Callable[[], T]], runs: int, warm_up: int = 1, *, limit: float = 45.0
) -> dict[str, list[T]]:
    """As ``interleaved``, for cases that measure more than one figure, and bounded in time.

    No round is begun ``limit`` seconds after the first, so a busy host gets fewer.
    """
    found: dict[str, list[T]] = {name: [] for name in cases}
    end = time.perf_counter() + limit
    for turn in range(-warm_up, runs):
        if turn > 0 and time.perf_counter() > end:
            break
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            measured = cases[name]()
            if turn >= 0:
                found[name].append(measured)
    return found


def _present(trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    present, skipped = list[Trial](), list[str]()
    for trial in trials:
        try:
            if trial.module:
                importlib.import_module(trial.module)
            present.append(trial)
        except ImportError:
            skipped.append(f"{trial.name}: {trial.module} is not installed")
    return present, skipped


def _case(
    section: str,
    trial: Trial,
    loop: str,
    factory: Callable[[], asyncio.AbstractEventLoop],
    context: Context,
) -> Callable[[], Run]:
    tasks = max(64, trial.tasks // _SHORT) if context.short else trial.tasks
    rounds = iter(range(10**9))

    async def timed() -> tuple[float, Mapping[str, Any]]:
        start = time.perf_counter()
        figures = await trial.work(tasks)
        return time.perf_counter() - start, figures or {}

    def run() -> Run:
        gc.collect()
        with asyncio.Runner(loop_factory=factory) as runner:
            seconds, figures = runner.run(timed())
        return Run(
            suite="overhead",
            case=f"{section}, {loop}",
            policy=trial.name,
            tasks=tasks,
            run=next(rounds),  # the warm-up is 0
            seed=context.seed,
            makespan=seconds,
            throughput=tasks / seconds,
            peak_rss=peak_rss(),
            figures={"loop": loop, "max_batch": trial.max_batch, **figures},
        )

    return run


def throughput(runs: Iterable[Run], case: str, policy: str) -> Spread:
    """Tasks a second in the rounds of one trial; ``nan`` if it was not run."""
    return median_spread(r.throughput for r in runs if (r.case, r.policy) == (case, policy))


def ratio(runs: Sequence[Run], case: str, policy: str, base: str) -> float:
    """How many times as fast as ``base`` it is, by ``times_by_round``."""
    speeds: dict[str, dict[int, float]] = {policy: {}, base: {}}
    for run in runs:
        if run.case == case and run.policy in speeds:
            speeds[run.policy][run.run] = run.throughput
    return times_by_round(speeds[policy], speeds[base])


def compared(title: str, runs: Sequence[Run], base: str, note: str = "") -> Table:
    """All trials of a section, each beside ``base`` on the same loop."""
    cases = list(dict.fromkeys(run.case for run in runs))
    columns = ["", *(f"{case.rpartition(', ')[2]}, tasks/s" for case in cases)]
    rows = [
        [policy, *(_cell(runs, case, policy, base) for case in cases)]
        for policy in dict.fromkeys(run.policy for run in runs)
    ]
    return Table(title, columns, rows, note)


def _cell(runs: Sequence[Run], case: str, policy: str, base: str) -> str:
    found = throughput(runs, case, policy)
    spread = f"{rate(found.median)} ({rate(found.least)}-{rate(found.most)})"
    return f"{spread} x{ratio(runs, case, policy, base):.3g}"
