"""The suite ``overhead``: what dispatching costs, with tasks that take no time.

Streams, single calls and calls in threads, each beside the simplest code by hand and beside other
packages that do the same, on asyncio's event loop and uvloop's, in turns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from asyncinfer._text import rate, seconds
from asyncinfer.bench.overhead import threads
from asyncinfer.bench.overhead.calls import BY_HAND as BY_HAND_CALLS
from asyncinfer.bench.overhead.calls import CALLS
from asyncinfer.bench.overhead.lag import BESIDE, lag_table, p99
from asyncinfer.bench.overhead.lag import CASE as LAG
from asyncinfer.bench.overhead.memory import memory, memory_table
from asyncinfer.bench.overhead.streams import BY_HAND, STREAMS
from asyncinfer.bench.overhead.trials import (
    Loops,
    Trial,
    compared,
    loops_here,
    measure,
    ratio,
    throughput,
)
from asyncinfer.bench.record import Check, Outcome, Plot, Run, Table
from asyncinfer.bench.suite import Context

__all__ = ("bars", "checks", "run")

_STREAM, _CALL = "stream", "infer, 64 in flight"
#: rounds of streams for each repeat that was asked for: many short ones, as the host's speed drifts
_STREAM_ROUNDS = 3

#: who must be so many times as fast as whom, under uvloop
CLAIMS = (
    (1.0, "asyncinfer", BY_HAND),
    (2.0, "asyncinfer, max_batch 64", BY_HAND),
    (20.0, "asyncinfer", "aiostream ordered map"),
)
#: seconds by which the loop may be later than beside the code by hand
LAG_LIMIT = 0.005

_TOLD = (
    "Median (least-most), and how many times as fast as the first line: the median over the "
    "rounds. Tasks return their input at once, so this is nothing but the cost of dispatching."
)


def run(context: Context) -> Outcome:
    """Measure everything; about a minute and a half, the short form some seconds."""
    start = time.perf_counter()
    outcome = Outcome("overhead")
    loops, outcome.skipped = loops_here()
    _section(outcome, context, loops, _STREAM, STREAMS, _STREAM_ROUNDS)
    outcome.tables.append(
        compared("Ordered streams of no-op tasks, 8 at a time", outcome.runs, BY_HAND, _TOLD)
    )
    outcome.plots.append(bars(outcome.runs, loops))
    calls = _section(outcome, context, loops, _CALL, CALLS)
    outcome.tables.append(
        compared("Single calls of no-op tasks, 64 in flight", calls, BY_HAND_CALLS, _TOLD)
    )
    _threads(outcome, context, loops)
    outcome.tables.append(lag_table(_section(outcome, context, loops, LAG, BESIDE)))
    outcome.runs += (held := memory(loops, context))
    outcome.tables.append(memory_table(held))
    outcome.checks += checks(outcome.runs)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _section(
    outcome: Outcome,
    context: Context,
    loops: Loops,
    section: str,
    trials: Sequence[Trial],
    rounds: int = 1,
) -> list[Run]:
    context.progress(section)
    runs, skipped = measure(section, trials, loops, context, rounds)
    outcome.runs += runs
    outcome.skipped += skipped
    return runs


def _threads(outcome: Outcome, context: Context, loops: Loops) -> None:
    for way, section in threads.SECTIONS.items():
        runs = _section(outcome, context, loops, section, threads.trials(way))
        outcome.tables.append(_costs(way, runs))


def _costs(way: str, runs: Sequence[Run]) -> Table:
    """Seconds a task instead of tasks a second."""
    cases = list(dict.fromkeys(run.case for run in runs))
    columns = ["", *(f"{case.rpartition(', ')[2]}, a task" for case in cases)]
    rows: list[list[str]] = []
    for policy in dict.fromkeys(run.policy for run in runs):
        cells = [policy]
        for case in cases:
            cost = 1 / throughput(runs, case, policy).median
            times = 1 / ratio(runs, case, policy, threads.BARE)
            cells.append(f"{seconds(cost)} x{times:.3g}")
        rows.append(cells)
    note = "Medians; how many times the cost of a bare thread with a queue to it, round by round."
    return Table(f"Handing work to a thread: {way}", columns, rows, note)


def checks(runs: Sequence[Run]) -> list[Check]:
    """What must hold under uvloop; nothing where it is not installed."""
    case = f"{_STREAM}, uvloop"
    found: list[Check] = []
    for least, policy, base in CLAIMS:
        times = ratio(runs, case, policy, base)
        if not math.isnan(times):
            claim = f"no-op stream, uvloop: {policy} >= {least:.1f} x {base}"
            rates = (rate(throughput(runs, case, name).median) for name in (policy, base))
            why = "{} against {} tasks/s".format(*rates)
            found.append(Check(claim, f"{times:.2f} x", times >= least, why))
    return found + _lag_checks(runs)


def _lag_checks(runs: Sequence[Run]) -> list[Check]:
    found: list[Check] = []
    for case in dict.fromkeys(run.case for run in runs if run.case.startswith(LAG)):
        later = p99(runs, case, "asyncinfer").median - p99(runs, case, BY_HAND).median
        claim = (
            f"no-op stream, {case.rpartition(', ')[2]}: p99 loop lag < "
            f"{seconds(LAG_LIMIT)} beyond that of {BY_HAND}"
        )
        found.append(Check(claim, seconds(later), later < LAG_LIMIT))
    return found


def bars(runs: Sequence[Run], loops: Loops) -> Plot:
    """Tasks a second of all streams, on a logarithmic axis."""
    streams = [run for run in runs if run.case.startswith(_STREAM)]
    policies = list(dict.fromkeys(run.policy for run in streams))

    def draw(ax: Any) -> None:
        height = 0.8 / len(loops)
        for place, loop in enumerate(loops):
            found = [throughput(streams, f"{_STREAM}, {loop}", policy) for policy in policies]
            rows = [row + place * height for row in range(len(policies))]
            error = [[s.median - s.least for s in found], [s.most - s.median for s in found]]
            ax.barh(rows, [s.median for s in found], height, xerr=error, label=loop)
        ax.set_yticks([row + 0.4 - height / 2 for row in range(len(policies))], policies)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel("no-op tasks a second")
        ax.legend()

    return Plot("overhead-streams", "Ordered streams of no-op tasks", draw, "Medians, extremes.")
