"""How late the event loop is beside a stream of tasks that answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from asyncinfer._text import seconds
from asyncinfer.bench.measure import LoopLag, Spread, median_spread
from asyncinfer.bench.overhead.streams import BY_HAND, by_hand, ours
from asyncinfer.bench.overhead.trials import Trial
from asyncinfer.bench.record import Run, Table
from asyncinfer.stats import percentile

__all__ = ("BESIDE", "CASE", "lag_table", "p99")

CASE = "loop lag"


async def _idle(tasks: int) -> None:
    """As long as the others take, about; then only the timer is late."""
    await asyncio.sleep(tasks / 600_000)


def _beside(run: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[Mapping[str, Any]]]:
    async def work(tasks: int) -> Mapping[str, Any]:
        with LoopLag() as lag:
            await run(tasks)
        return {
            "lag_p50": percentile(lag.samples, 0.5),
            "lag_p99": lag.p99,
            "lag_worst": lag.worst,
            "lag_samples": [round(late, 6) for late in lag.samples],
        }

    return work


#: an idle loop, then who keeps it busy
BESIDE = (
    Trial("nothing", _beside(_idle), 300_000),
    Trial(BY_HAND, _beside(by_hand), 300_000),
    Trial("asyncinfer", _beside(ours), 300_000),
    Trial("asyncinfer, max_batch 64", _beside(partial(ours, max_batch=64)), 300_000, "", 64),
)


def lag_table(runs: Sequence[Run]) -> Table:
    """Medians over the rounds of the percentiles in each."""
    cases = dict.fromkeys(run.case for run in runs)
    columns = ("", *(f"{case.rpartition(', ')[2]}: p50, p99, worst" for case in cases))
    rows = [
        [policy, *(_cell(runs, case, policy) for case in cases)]
        for policy in dict.fromkeys(run.policy for run in runs)
    ]
    note = (
        "How late a timer of 1 ms is; medians over the rounds. Whatever runs beside this benchmark "
        "makes them worse: compare with an idle loop. uvloop's timers have a grain of 1 ms."
    )
    return Table("Event loop lag beside a stream of no-op tasks", columns, rows, note)


def p99(runs: Sequence[Run], case: str, policy: str) -> Spread:
    """The 99th percentile of the lag in each round."""
    return _over(runs, case, policy, "lag_p99")


def _over(runs: Sequence[Run], case: str, policy: str, figure: str) -> Spread:
    chosen = [run for run in runs if (run.case, run.policy) == (case, policy)]
    return median_spread(run.figures[figure] for run in chosen)


def _cell(runs: Sequence[Run], case: str, policy: str) -> str:
    figures = ("lag_p50", "lag_p99", "lag_worst")
    return ", ".join(seconds(_over(runs, case, policy, figure).median) for figure in figures)
