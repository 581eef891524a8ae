"""The suite ``scale``: what a task costs, and what is held in memory, as devices and tasks grow.

Every case runs in a fresh process, so that none sees what another left in memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncinfer._text import seconds, size
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.suite import Context

__all__ = ("run",)

CHILD = "asyncinfer.bench.simulated._scale_child"
#: a case that takes this many times its limit of CPU time by the clock on the wall is given up
PATIENCE = 4.0
#: where memory is compared: most tasks a call, and seconds that a call costs on top. If it cost
#: nothing, calls would have one task; full ones bring a million tasks in a tenth of the CPU time
BATCH, CALL = 16, 0.1


@dataclass(frozen=True)
class Sizes:
    """How far to go."""

    devices: Sequence[int]
    #: tasks of each of these cases
    tasks: int
    #: seconds of CPU time after which no more tasks are read
    limit: float
    #: tasks whose memory is compared, on ten devices
    few: int
    many: int
    #: the same limit for ``many``
    long: float


FULL = Sizes((10, 100, 1000, 10_000), 100_000, 15.0, 10_000, 1_000_000, 100.0)
SHORT = Sizes((10, 1000), 5_000, 2.0, 2_000, 10_000, 5.0)


def run(context: Context) -> Outcome:
    """Cost by devices, memory by tasks."""
    sizes = SHORT if context.short else FULL
    outcome = Outcome("scale")
    costs: dict[int, float] = {}
    rows: list[list[str]] = []
    for count in sizes.devices:
        context.progress(f"{sizes.tasks} tasks over {count} devices")
        lost = math.inf in costs.values()  # more devices would take longer still
        facts = None if lost else _child(context.seed, count, sizes.tasks, sizes.limit)
        costs[count] = facts["cpu"] / facts["tasks"] if facts else math.inf
        outcome.runs += _rows("devices", count, context.seed, facts)
        rows.append(_row(count, sizes, facts))
    columns = ["devices", "tasks", "CPU per task", "CPU", "wall", "x optimum", "peak memory"]
    note = (
        "Simulated devices of 10 to 40 ms on a virtual clock, eft, window as wide as they need; a "
        f"fresh process each. No task is read after {sizes.limit:g} s of CPU time."
    )
    outcome.tables.append(Table("cost by devices", columns, rows, note))
    outcome.checks += [_cost_check(costs), _memory(context, sizes, outcome)]
    return outcome


def _memory(context: Context, sizes: Sizes, outcome: Outcome) -> Check:
    peaks: dict[int, float] = {}
    rows: list[list[str]] = []
    for tasks in (sizes.few, sizes.many):
        context.progress(f"{tasks} tasks over 10 devices")
        facts = _child(context.seed, 10, tasks, sizes.long, BATCH, CALL)
        done = facts["tasks"] if facts else 0
        peaks[done] = facts["peak_rss"] if facts else math.nan
        outcome.runs += _rows("tasks", 10, context.seed, facts)
        told = (f"{facts[key]:,}" if facts else "-" for key in ("calls", "max_reorder"))
        rows.append([f"{done:,}", size(peaks[done]), *told])
    note = (
        "10 simulated devices of 10 to 40 ms a task on a virtual clock, eft; a fresh process each. "
        f"Up to {BATCH} tasks a call, which costs {CALL:g} s on top: it is memory that is compared "
        "here, and batches bring a million tasks within a minute of CPU time."
    )
    outcome.tables.append(
        Table("memory by tasks", ["tasks", "peak", "calls", "reorder"], rows, note)
    )
    few, many = min(peaks), max(peaks)
    ratio = peaks[many] / peaks[few]
    return Check(
        "peak memory is flat in tasks: <= 1.2x",
        f"{ratio:.3f}x from {few:,} to {many:,} tasks",
        ratio <= 1.2 and many == sizes.many,
        "" if many == sizes.many else f"{sizes.many:,} tasks were not reached in time",
    )


def _cost_check(costs: Mapping[int, float]) -> Check:
    few, many = min(costs), max(costs)
    ratio = costs[many] / costs[few]
    claim = f"cost per task at {many:,} devices <= 2x that at {few}"
    if math.isinf(ratio):
        return Check(claim, "not one window of tasks was done in time", False)
    return Check(claim, f"{ratio:.2f}x ({seconds(costs[few])}, {seconds(costs[many])})", ratio <= 2)


def _child(
    seed: int, devices: int, tasks: int, limit: float, batch: int = 1, call: float = 0.0
) -> dict[str, Any] | None:
    """What one process measured; ``None`` if it took too long."""
    asked = {"devices": devices, "tasks": tasks, "limit": limit, "seed": seed, "policy": "eft"}
    asked |= {"batch": batch, "call": call}
    command = [sys.executable, "-m", CHILD, json.dumps(asked)]
    try:
        done = subprocess.run(  # noqa: S603  # our own module
            command, capture_output=True, text=True, check=False, timeout=PATIENCE * limit
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(
            f"{devices} devices, {tasks} tasks: {lines[-1] if lines else 'no output'}"
        )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _row(count: int, sizes: Sizes, facts: Mapping[str, Any] | None) -> list[str]:
    if not facts:
        return [f"{count:,}", "-", f"not within {PATIENCE * sizes.limit:g} s", *"----"]
    return [
        f"{count:,}",
        f"{facts['tasks']:,}",
        seconds(facts["cpu"] / facts["tasks"]),
        seconds(facts["cpu"]),
        seconds(facts["wall"]),
        f"{facts['makespan'] / facts['optimum']:.4f}",
        size(facts["peak_rss"]),
    ]


def _rows(case: str, devices: int, seed: int, facts: Mapping[str, Any] | None) -> list[Run]:
    if not facts:
        return []
    run = Run(
        suite="scale",
        case=f"{case}: {devices} devices, {facts['tasks']} tasks",
        policy="eft",
        devices=[f"{devices} simulated"],
        tasks=facts["tasks"],
        window=facts["window"],
        queue_size=1024,
        seed=seed,
        makespan=facts["makespan"],
        optimum=facts["optimum"],
        ratio=facts["makespan"] / facts["optimum"],
        throughput=facts["tasks"] / facts["makespan"],
        max_reorder=facts["max_reorder"],
        peak_rss=facts["peak_rss"],
        figures={key: facts[key] for key in ("cpu", "wall", "calls")}
        | {"cpu_per_task": facts["cpu"] / facts["tasks"]},
    )
    return [run]
