"""One model on each device alone, on several, and under two policies: in turns."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from asyncinfer._text import rate, seconds
from asyncinfer.bench.measure import median_spread
from asyncinfer.bench.overhead.trials import in_turns, loops_here
from asyncinfer.bench.real.devices import (
    Opened,
    close_all,
    devices_for,
    notes,
    open_all,
    with_own_steps,
)
from asyncinfer.bench.real.passes import Case, Work, one_pass
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.suite import Context

__all__ = ("cases", "checks", "stage")

_NOTE = (
    "Median (least-most) of the runs, which take turns. All inputs are offered at once, so that "
    "latency, from acceptance to delivery, is mostly waiting. Everything shares this host's cores. "
)


def stage(name: str, context: Context, outcome: Outcome) -> None:
    """Measure one model; raises ``AsyncInferError`` if it cannot be run here at all."""
    model = with_own_steps(name)
    inputs = model.inputs
    assert inputs is not None  # noqa: S101  # built-in models have some
    work = Work(name, list(inputs.items), inputs.targets)
    chosen, skipped = devices_for(name, context)
    loops, _ = loops_here()
    with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
        context.progress(f"{name}, opening {', '.join(d.name for d in chosen)}")
        opened, missing = runner.run(open_all(chosen, model))
        try:
            runs = _measured(opened, work, context, runner)
        finally:
            runner.run(close_all(opened))
    outcome.skipped += skipped + missing
    outcome.runs += runs
    if runs:
        outcome.tables += [_speed(name, runs, notes(chosen)), _answers(name, runs)]


def _measured(
    opened: Sequence[Opened], work: Work, context: Context, runner: asyncio.Runner
) -> list[Run]:
    if not opened:
        return []
    took = 0.3 if context.short else 1.0
    work.alone.extend(runner.run(one_pass(Case(opened[:1]), work, len(work.items)))[1])

    def run(case: Case, tasks: int) -> Run:
        context.progress(f"{work.model} on {case.title}, {case.policy}")
        return runner.run(one_pass(case, work, tasks))[0]

    fastest = max(device.rate for device in opened)
    passes: dict[str, Callable[[], Run]] = {}
    for case in cases(opened):
        passes[f"{case.title}, {case.policy}"] = partial(run, case, case.tasks(took, fastest))
    measured = in_turns(passes, 1 if context.short else context.runs, warm_up=0, limit=40)
    return [
        replace(one, run=number, seed=context.seed)
        for runs in measured.values()
        for number, one in enumerate(runs, 1)
    ]


def cases(opened: Sequence[Opened]) -> list[Case]:
    """Each unlike device alone, pairs of like ones, and all but the surplus under two policies."""
    groups: dict[str, list[Opened]] = {}
    for device in opened:
        kind, dash, number = device.name.rpartition("-")
        groups.setdefault(kind if dash and number.isdecimal() else device.name, []).append(device)
    found = [Case(group[:1]) for group in groups.values()]
    found += [Case(group) for group in groups.values() if len(group) > 1]
    if len(groups) > 1:
        threads = [d for kind, group in groups.items() if kind != "process" for d in group]
        found += [Case(threads, policy) for policy in ("eft", "greedy")]
    return found


def _groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.case.partition(": ")[2], run.policy), []).append(run)
    return groups


def _median(runs: Sequence[Run], figure: str) -> float:
    """Of a column, or of one of the figures that only this suite has."""
    return median_spread(
        run.figures[figure] if figure in run.figures else getattr(run, figure) for run in runs
    ).median


def _speed(name: str, runs: Sequence[Run], told: str) -> Table:
    columns = ("devices", "policy", "tasks", "images/s", "makespan", "mean hold", "utilisation")
    rows: list[Sequence[str]] = []
    for (title, policy), group in _groups(runs).items():
        found = median_spread(run.throughput for run in group)
        used = (
            median_spread(run.utilisation[device] for run in group).median
            for device in group[0].devices
        )
        rows.append(
            (
                title,
                policy,
                str(group[0].tasks),
                f"{rate(found.median)} ({rate(found.least)}-{rate(found.most)})",
                seconds(_median(group, "makespan")),
                seconds(_median(group, "hold_mean")),
                ", ".join(f"{part:.0%}" for part in used),
            )
        )
    return Table(f"{name}: speed", columns, rows, f"{_NOTE}{told}.")


def _answers(name: str, runs: Sequence[Run]) -> Table:
    """Latency, whether the answers are right, and what it costs beside time."""
    latencies = ("latency_mean", "latency_p50", "latency_p95", "latency_p99")
    columns = (
        "devices",
        "policy",
        "latency mean, p50, p95, p99",
        "right",
        "as alone",
        "bit-exact",
        "loop lag p99",
        "memory",
    )
    rows: list[Sequence[str]] = []
    for (title, policy), group in _groups(runs).items():
        exact = {run.figures["bit_exact"] for run in group if "bit_exact" in run.figures}
        rows.append(
            (
                title,
                policy,
                ", ".join(seconds(_median(group, latency)) for latency in latencies),
                _percent(_median(group, "accuracy")),
                _percent(_median(group, "same_as_alone")),
                ("NO" if False in exact else "yes") if exact else "-",
                seconds(_median(group, "loop_lag_p99")),
                f"{_median(group, 'memory_mib'):.0f} MiB",
            )
        )
    note = (
        "Right: as labelled, where there are labels. As alone: the answers of the first device "
        "alone. Bit-exact: the emulated board against its compiler's integer reference. Loop lag: "
        "a timer of 1 ms. Memory: this process and its children, by memory_profiler, all devices "
        "open."
    )
    return Table(f"{name}: latency and answers", columns, rows, note)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def checks(runs: Sequence[Run]) -> list[Check]:
    """That speed costs no answer: floating point as alone, the board as its reference."""
    found: list[Check] = []
    floating = [r for r in runs if "same_as_alone" in r.figures and "bit_exact" not in r.figures]
    if floating:
        least = min(r.figures["same_as_alone"] for r in floating)
        claim = "torch devices together give the answers of one alone"
        found.append(Check(claim, f"{least:.2%} the same, at worst", least >= 1))
    exact = [r.figures["bit_exact"] for r in runs if "bit_exact" in r.figures]
    if exact:
        claim = "the emulated Cortex-M4 gives its integer reference's answers, bit for bit"
        found.append(Check(claim, f"{sum(exact)} of {len(exact)} runs", all(exact)))
    return found
