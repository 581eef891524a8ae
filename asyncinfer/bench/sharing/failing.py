"""A good device beside one that fails tasks: made up on a virtual clock, and real."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice, takewhile
from typing import Any

from asyncinfer._text import rate, seconds
from asyncinfer.bench.measure import LoopLag, median_spread, times_by_round
from asyncinfer.bench.overhead.trials import in_turns, loops_here
from asyncinfer.bench.real.devices import Opened, close_all, open_all, with_own_steps
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.sharing.devices import Failing, fails_from, fails_often, plain_torch
from asyncinfer.bench.sharing.sets import MODEL
from asyncinfer.bench.suite import Context
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver
from asyncinfer.errors import TaskError
from asyncinfer.testing import SimulatedDriver, run_virtual

__all__ = ("LONGEST", "made_up", "real")

#: a broken device may make the job so many times longer, and a flaky one not at all
LONGEST = 1.10
#: of the flaky device's tasks
CHANCE = 0.2
#: the good device: seconds of a call, of each of its tasks, and tasks of a call
CALL, EACH, BATCH = 0.02, 0.001, 32
TASKS, MANY_TASKS = 600, 3_000
#: the real one that breaks does so at this call; images of a pass, and in the short form
BREAKS_AT = 20
IMAGES, FEW_IMAGES = 20_000, 5_000
#: seconds after which a pass takes no more of them
LIMIT = 5.0
ALONE = "the good one alone"
_GOOD = "good"

_MADE_UP = (
    "Simulated devices on a virtual clock: a good one that takes batches of 32 in 52 ms, and one "
    "beside it. Time: from the first task to the last, as a part of the good one's alone, which "
    "is {alone} for {tasks} tasks. Failed for good: of the tasks, with retries=1."
)
_REAL = (
    "Digits on torch drivers of this host, in turns: median (least-most) of the rounds. The second "
    "one raises an error for all tasks from its call {breaks} on, or for each by chance. Loop lag: "
    "a timer of 1 ms."
)


# ---- made up


@dataclass(frozen=True)
class _Beside:
    """A device beside the good one."""

    title: str
    #: seconds of a call, of each of its tasks, and tasks of a call
    call: float
    each: float
    batch: int
    fail: Callable[[random.Random], object]
    #: times as long as the good one alone that the job may take
    longest: float
    tasks: int = TASKS


def _error(draw: random.Random) -> object:
    del draw
    return RuntimeError("broken")


def _lost(draw: random.Random) -> object:
    del draw
    return True


def _often(draw: random.Random) -> object:
    return RuntimeError("flaky") if draw.random() < CHANCE else None


BESIDE = (
    _Beside("fails every task at once", 0.0, 0.0, 1, _error, LONGEST),
    _Beside("fails every batch at once", 0.0, 0.0, BATCH, _error, LONGEST),
    _Beside("fails every task after 50 ms", 0.05, 0.0, 1, _error, LONGEST),
    _Beside("is lost by every call", 0.0, 0.001, 1, _lost, LONGEST),
    _Beside("is as good, fails 20 %", CALL, EACH, BATCH, _often, 1.0, MANY_TASKS),
    _Beside("takes 5 ms a task, fails 20 %", 0.0, 0.005, 1, _often, 1.0, MANY_TASKS),
)


def made_up(context: Context, outcome: Outcome) -> None:
    """Each of the devices beside the good one, on a virtual clock."""
    alone = {tasks: _simulated(None, tasks, context.seed) for tasks in (TASKS, MANY_TASKS)}
    rows: list[Sequence[str]] = []
    longest: dict[float, dict[str, float]] = {}
    lost = 0
    for beside in BESIDE:
        context.progress(f"simulated, beside one that {beside.title}")
        run = _simulated(beside, beside.tasks, context.seed)
        ratio = run.makespan / alone[beside.tasks].makespan
        run = replace(run, ratio=ratio)
        outcome.runs.append(run)
        longest.setdefault(beside.longest, {})[beside.title] = ratio
        lost += run.figures["failed"]
        rows.append(
            (f"one that {beside.title}", str(run.tasks), f"{ratio:.3f}", str(run.figures["failed"]))
        )
    outcome.runs += alone.values()
    note = _MADE_UP.format(alone=seconds(alone[TASKS].makespan), tasks=TASKS)
    columns = ("beside the good one", "tasks", "time", "failed for good")
    outcome.tables.append(Table("made-up devices that fail", columns, rows, note))
    for limit, ratios in longest.items():
        name = max(ratios, key=lambda title: ratios[title])
        claim = (
            f"beside a broken device the good one takes <= {limit} of its time alone"
            if limit > 1
            else f"a flaky device ({CHANCE:.0%}) makes the good one no slower"
        )
        measured = f"{ratios[name]:.3f} at worst: {name}"
        outcome.checks.append(Check(claim, measured, ratios[name] <= limit))
    claim = "devices that fail beside a good one: no task fails for good with retries=1"
    outcome.checks.append(Check(claim, f"{lost} tasks", not lost))


def _simulated(beside: _Beside | None, tasks: int, seed: int) -> Run:
    return run_virtual(_made_up(beside, tasks, seed))


async def _made_up(beside: _Beside | None, tasks: int, seed: int) -> Run:
    drivers = [SimulatedDriver(_GOOD, EACH, batch_cost=CALL, max_batch=BATCH)]
    if beside is not None:
        draw = random.Random(f"{seed}/{beside.title}")
        fails = beside.fail
        drivers.append(
            SimulatedDriver(
                "failing",
                beside.each,
                batch_cost=beside.call,
                max_batch=beside.batch,
                fail=lambda x: fails(draw),
            )
        )
    title = "made up: " + (f"beside one that {beside.title}" if beside else ALONE)
    return await _pass(title, drivers, range(tasks), retries=1)


async def _pass(
    case: str, drivers: Sequence[Driver[Any, Any]], items: Iterable[Any], **options: Any
) -> Run:
    """All items once: how long it took, and how many failed for good."""
    failed = 0
    async with Dispatcher(drivers, wait_for="all", **options) as dispatcher:
        async with dispatcher.stream(items, return_exceptions=True) as outputs:
            async for output in outputs:
                failed += isinstance(output, TaskError)
        stats = dispatcher.stats()
    return Run(
        suite="sharing",
        case=case,
        policy="eft",
        devices=[device.name for device in stats.devices],
        tasks=stats.finished,
        makespan=stats.elapsed,
        throughput=stats.throughput,
        figures={
            "failed": failed,
            "retried": stats.retried,
            "tasks": {device.name: device.tasks for device in stats.devices},
        },
    )


# ---- real

BROKEN, FLAKY = "one that breaks", f"one that fails {CHANCE:.0%}"


def real(context: Context, outcome: Outcome) -> None:
    """A torch driver alone, and beside another one that begins to fail, or fails at times."""
    model = with_own_steps(MODEL)
    loops, _ = loops_here()
    with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
        context.progress("opening two torch devices")
        opened, skipped = runner.run(open_all([plain_torch(_GOOD), plain_torch("failing")], model))
        outcome.skipped += skipped
        try:
            if not skipped:
                assert model.inputs is not None  # noqa: S101  # built-in models have some
                runs = _turns(opened, list(model.inputs.items), context, runner)
                outcome.runs += [run for of in runs.values() for run in of]
                outcome.tables.append(_table(runs))
                outcome.checks += _checks(runs)
        finally:
            runner.run(close_all(opened))


def _turns(
    opened: Sequence[Opened], items: Sequence[Any], context: Context, runner: asyncio.Runner
) -> Mapping[str, list[Run]]:
    good, other = opened
    images = FEW_IMAGES if context.short else IMAGES
    made: dict[str, Callable[[], list[Driver[Any, Any]]]] = {
        ALONE: lambda: [good],
        BROKEN: lambda: [good, Failing(other, fails_from(BREAKS_AT))],
        FLAKY: lambda: [good, Failing(other, fails_often(CHANCE, context.seed))],
    }

    def one(name: str) -> Run:
        context.progress(f"{images} images, {name}")
        return runner.run(_timed(f"digits: {name}", made[name](), items, images))

    rounds = 1 if context.short else context.runs
    cases = {name: partial(one, name) for name in made}
    found = in_turns(cases, rounds, warm_up=0 if context.short else 1, limit=60.0)
    return {
        name: [replace(run, run=number) for number, run in enumerate(runs, 1)]
        for name, runs in found.items()
    }


async def _timed(
    case: str, drivers: Sequence[Driver[Any, Any]], items: Sequence[Any], images: int
) -> Run:
    with LoopLag() as lag:
        run = await _pass(case, drivers, _soon(islice(cycle(items), images)))
    return replace(run, figures={**run.figures, "loop_lag_p99": lag.p99})


def _soon(items: Iterable[Any]) -> Iterator[Any]:
    """The items, as long as there is time."""
    end = time.perf_counter() + LIMIT
    return takewhile(lambda x: time.perf_counter() < end, items)


def _speeds(runs: Sequence[Run]) -> dict[int, float]:
    return {run.run: run.throughput for run in runs}


def _table(runs: Mapping[str, Sequence[Run]]) -> Table:
    rows: list[Sequence[str]] = []
    for name, of in runs.items():
        found = median_spread(run.throughput for run in of)
        failed = max(run.figures["failed"] for run in of)
        lag = median_spread(run.figures["loop_lag_p99"] for run in of).median
        rows.append(
            (
                name if name == ALONE else f"beside {name}",
                f"{rate(found.median)} ({rate(found.least)}-{rate(found.most)})",
                f"{times_by_round(_speeds(of), _speeds(runs[ALONE])):.3f}",
                str(failed),
                seconds(lag),
            )
        )
    columns = ("", "images/s", "of the good one alone", "failed for good, at most", "loop lag p99")
    return Table("a torch device that fails", columns, rows, _REAL.format(breaks=BREAKS_AT))


def _checks(runs: Mapping[str, Sequence[Run]]) -> list[Check]:
    alone, found = _speeds(runs[ALONE]), list[Check]()
    for name, least in ((BROKEN, 1 / LONGEST), (FLAKY, 1.0)):
        ratio = times_by_round(_speeds(runs[name]), alone)
        claim = f"a torch device beside {name}: >= {least:.3g} of its rate alone"
        found.append(Check(claim, f"{ratio:.3f}", ratio >= least))
    lost = sum(run.figures["failed"] for of in runs.values() for run in of)
    claim = "torch devices of which one fails: no task fails for good"
    found.append(Check(claim, f"{lost} tasks", not lost))
    return found
