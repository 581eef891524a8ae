"""What the ablation varies while nothing changes during a run."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from asyncinfer import theory
from asyncinfer.bench.plots import lines
from asyncinfer.bench.simulated.lab import DEVICES, POLICIES, Case, Lab, Results
from asyncinfer.bench.simulated.simulation import Plan

__all__ = ("estimates", "heterogeneity", "mixed", "noise", "number", "queues", "spread", "windows")

#: tasks of most cases
TASKS = 1000


def number(lab: Lab) -> None:
    """How many devices there are."""
    paper = DEVICES["paper's 8"]
    counts = lab.pick((2, 4, 8, 16), (2, 8))
    sets = {
        "like the paper's": {n: [paper[i % 8] for i in range(n)] for n in counts},
        "10 ms to 1 s": {n: [0.01 * 100 ** (i / (n - 1)) for i in range(n)] for n in counts},
    }
    for kind, by_count in sets.items():
        plans = {f"{n} devices": Plan(times, TASKS) for n, times in by_count.items()}
        title = f"number of devices, {kind}"
        note = f"{TASKS} tasks, window 1024."
        results = lab.sweep(title, plans, _policies(lab), note)
        name = "throughput-near" if kind.startswith("like") else "throughput-far"
        parts = _series(results, lambda case: case.observed.throughput / case.plan.total_rate)
        draw = lines(counts, parts, ("devices", "throughput / R"), log_x=True, top=1.05)
        lab.plot(name, f"Throughput / R against n: {kind}", draw, note)


def windows(lab: Lab) -> None:
    """How wide the window is; the queue in front of it keeps its size."""
    for kind, times in _sets(lab):
        widths = lab.pick((math.inf, 1000, 100, len(times)), (1000, 100))
        tasks = lab.pick((3 * TASKS,), (TASKS,))[0]
        plans = {_width(w): Plan(times, tasks, w) for w in widths}
        note = f"{tasks} tasks; every device takes part from {theory.window_needed(times)}."
        lab.sweep(f"window, {kind}", plans, note=note)
    times = DEVICES["5 ms, 100 ms, 1 s"]
    widths = lab.pick((4, 8, 16, 32, 64, 100, 128, 211, 256, 512, 1024), (16, 100, 256))
    plans = {_width(w): Plan(times, TASKS, w) for w in widths}
    results = lab.sweep("hold against window, 5 ms, 100 ms, 1 s", plans, note=f"{TASKS} tasks.")
    holds = _series(results, lambda case: 1000 * case.observed.hold_mean)
    draw = lines(widths, holds, ("window (tasks)", "mean hold (ms)"), log_x=True)
    lab.plot("hold", "Mean hold against window: 5 ms, 100 ms, 1 s", draw)


def queues(lab: Lab) -> None:
    """How far the source is read ahead of the window."""
    for kind, times in _sets(lab):
        sizes = lab.pick((math.inf, 1000, 100), (100,))
        tasks = lab.pick((3 * TASKS,), (TASKS,))[0]
        plans = {_width(size): Plan(times, tasks, queue_size=size) for size in sizes}
        lab.sweep(f"queue capacity, {kind}", plans, note=f"{tasks} tasks, window 1024.")


def heterogeneity(lab: Lab) -> None:
    """How unequal eight devices of the same total rate are."""
    parts = lab.pick((0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2), (0, 1, 2))
    plans = {f"{part:g} x mean": Plan(spread(8, part, rate=100.0), TASKS) for part in parts}
    note = f"Log-normal service times, 8 devices, R = 100 tasks/s, {TASKS} tasks, window 1024."
    results = lab.sweep("heterogeneity: std(T)", plans, _policies(lab), note)
    ratios = _series(results, lambda case: case.ratio)
    draw = lines(parts, ratios, ("std(T) / mean(T)", "makespan / optimum"), log_y=True)
    lab.plot("heterogeneity", "Makespan / optimum against heterogeneity", draw, note)


def spread(count: int, part: float, rate: float) -> list[float]:
    """Service times at log-normal quantiles whose deviation is ``part`` of their mean.

    ``part`` must be below ``sqrt(count - 1)``, which one slow device among fast ones has.
    """
    normal = statistics.NormalDist()
    quantiles = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]

    def shape(sigma: float) -> list[float]:
        return [math.exp(sigma * z) for z in quantiles]

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        times = shape(middle)
        if statistics.pstdev(times) < part * statistics.fmean(times):
            low = middle
        else:
            high = middle
    times = shape(low)
    scale = theory.total_rate(times) / rate
    return [t * scale for t in times]


def noise(lab: Lab) -> None:
    """How much service times vary from task to task."""
    levels = lab.pick((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.3,))
    seeds = range(lab.context.seed, lab.context.seed + lab.pick((5,), (1,))[0])
    windows = lab.pick((1024, 100), (1024,))
    repeats = [
        _repeated(lab, f"noise, {kind}", Plan(times, TASKS, window, level), seeds)
        for kind, times in _sets(lab)
        for window in windows
        for level in levels
    ]
    rows = [_noise_row(cases) for cases in repeats]
    columns = ["case", "noise", "window", "eft: x optimum, median (worst)", "hold"]
    columns += ["greedy: x optimum, median (worst)", "hold"]
    note = f"Sigma of a log-normal factor of mean 1; {TASKS} tasks, {len(seeds)} seeds; optimum of"
    lab.table("noise", columns, rows, f"{note} the mean times; hold as part of the slowest T.")


def _repeated(lab: Lab, name: str, plan: Plan, seeds: Sequence[int]) -> list[list[Case]]:
    """One run a seed, for each policy."""
    return [
        [
            lab.run(name, replace(plan, policy=policy, seed=seed), run=run)
            for run, seed in enumerate(seeds, 1)
        ]
        for policy in POLICIES[:2]
    ]


def _noise_row(repeats: Sequence[Sequence[Case]]) -> list[str]:
    first = repeats[0][0]
    row = [first.name, f"{first.plan.noise:g}", f"{first.plan.window:g}"]
    for cases in repeats:
        ratios = [case.ratio for case in cases]
        holds = [case.hold for case in cases]
        row += [
            f"{statistics.median(ratios):.4f} ({max(ratios):.4f})",
            f"{statistics.median(holds):.1%}",
        ]
    return row


def estimates(lab: Lab) -> None:
    """How wrong the first estimates are."""
    for kind, times in _sets(lab):
        factors = lab.pick((0.1, 1.0, 10.0), (0.1, 10.0))
        plans = {f"x {factor:g}": Plan(times, TASKS, estimate=factor) for factor in factors}
        lab.sweep(f"first estimates, {kind}", plans, note=f"{TASKS} tasks, window 1024.")


def mixed(lab: Lab) -> None:
    """Sets of devices drawn at random, so that nothing is tuned to the others."""
    chance = random.Random(lab.context.seed)
    count = lab.pick((40,), (3,))[0]
    sets = [
        [0.01 * 10 ** chance.uniform(0, 2) for _ in range(chance.randint(2, 12))]
        for _ in range(count)
    ]
    asked = [
        [
            lab.run(f"random set {number}", Plan(times, TASKS, window, policy=policy))
            for window in (1024, 100)
            for policy in POLICIES[:2]
        ]
        for number, times in enumerate(sets, 1)
    ]
    rows = [_mixed_row(number, cases) for number, cases in enumerate(asked, 1)]
    policies = (f"{p}, W {w:g}" for w in (1024, 100) for p in POLICIES[:2])
    columns = ["set", "window needed", *policies, "in order, W 100"]
    note = (
        f"2 to 12 devices of 10 ms to 1 s, {TASKS} tasks: makespan / optimum · mean hold as part "
        "of the slowest service time. Last: what theory.windowed_makespan expects at best."
    )
    lab.table("random sets", columns, rows, note)


def _mixed_row(number: int, cases: Sequence[Case]) -> list[str]:
    """``cases``: the last is of the narrow window."""
    plan = cases[-1].plan
    cells = [f"{case.ratio:.4f} · {case.hold:.1%}" for case in cases]
    best = f"{plan.windowed_optimum / plan.optimum:.4f}"
    return [f"{number}: {len(plan.service_times)} devices", str(plan.window_needed), *cells, best]


def _series(results: Results, value: Callable[[Case], float]) -> dict[str, list[float]]:
    """A figure of each case, by policy."""
    policies = next(iter(results.values()))
    return {p: [value(cases[p]) for cases in results.values()] for p in policies}


def _policies(lab: Lab) -> Sequence[str]:
    """Static and lock-step take long to simulate."""
    return POLICIES[:2] if lab.context.short else POLICIES[:4]


def _sets(lab: Lab) -> list[tuple[str, Sequence[float]]]:
    return lab.pick(DEVICES.items(), list(DEVICES.items())[:2])


def _width(width: float) -> str:
    return f"{width:g}" if math.isfinite(width) else "unbounded"
