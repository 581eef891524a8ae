"""What the ablation changes during a run: a device's speed, a live source, the set of devices."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from asyncinfer import theory
from asyncinfer._text import seconds
from asyncinfer.bench.plots import distributions
from asyncinfer.bench.record import Check
from asyncinfer.bench.simulated.checks import worst
from asyncinfer.bench.simulated.lab import DEVICES, POLICIES, Case, Lab
from asyncinfer.bench.simulated.simulation import Plan, Throttle

__all__ = ("added_device", "drift", "live", "throttled_optimum")

TASKS = 1000
#: what a throttled device becomes slower by
THROTTLED = 4.0
#: a call that takes more of the whole job decides it, unless it is run elsewhere too
DECISIVE = 0.1
#: policies that can be simulated with many tasks
_QUICK = ("eft", "greedy", "serial")

#: by window and policy
_Cases: TypeAlias = Mapping[tuple[int, str], Case]


@dataclass(frozen=True)
class _Drift:
    """One device throttles, under several policies."""

    name: str
    plan: Plan
    throttle: Throttle
    cases: Mapping[str, Case]
    hedged: Case

    @cached_property
    def makespans(self) -> Mapping[str, float]:
        return {policy: case.observed.makespan for policy, case in self.cases.items()}

    @cached_property
    def best(self) -> float:
        """The optimum that knows of the throttling."""
        return throttled_optimum(self.plan.service_times, self.plan.tasks, self.throttle)

    @property
    def decided(self) -> bool:
        """Whether one call of the throttled device decides the whole job."""
        call = self.throttle.factor * self.plan.service_times[self.throttle.position]
        return call > DECISIVE * self.best

    @property
    def unhedged(self) -> float:
        """Our loss against the best policy in hindsight."""
        return self.makespans["eft"] / min(self.makespans.values())

    @property
    def loss(self) -> float:
        """The same, hedged where one call decides."""
        makespan = self.hedged.observed.makespan if self.decided else self.makespans["eft"]
        return makespan / min(self.makespans.values())

    @property
    def row(self) -> list[str]:
        """Its line of the table."""
        spans = self.makespans
        cells = [f"{spans[p] / self.best:.4f}" if p in spans else "-" for p in POLICIES]
        cells.append(f"{self.hedged.observed.makespan / self.best:.4f}")
        return [self.name, *cells, seconds(self.cases["eft"].observed.hold_mean)]


def drift(lab: Lab) -> Check:
    """One device throttles half way; nothing tells the dispatcher."""
    drifts = list(_drifts(lab))
    columns = ["case", *(f"{p}: x optimum" for p in POLICIES), "eft, hedged", "eft: hold"]
    note = f"Service time x {THROTTLED:g} half way, window 1024; against an optimum that knows it."
    lab.table("drift", columns, [each.row for each in drifts], note)
    decided = [f"{each.name} (unhedged {each.unhedged:.4f})" for each in drifts if each.decided]
    claim = "makespan <= 1.03 of the best policy in hindsight under drift"
    why = (
        f"with hedge=True where one call takes over {DECISIVE:.0%} of the job: {', '.join(decided)}"
    )
    losses = {each.name: each.loss for each in drifts}
    return worst(claim, losses, 1.03, why=why if decided else "")


def _drifts(lab: Lab) -> Iterator[_Drift]:
    """Ask for all of them."""
    far = "5 ms, 100 ms, 1 s"
    plans = [(kind, Plan(times, TASKS)) for kind, times in DEVICES.items()]
    long = (far, Plan(DEVICES[far], 10 * TASKS))
    for kind, plan in lab.pick([*plans, long], plans[:1]):
        policies = _QUICK if lab.context.short or plan is long[1] else POLICIES
        order = sorted(range(len(plan.service_times)), key=lambda i: plan.service_times[i])
        picks = {"fastest": order[0], "middle": order[len(order) // 2], "slowest": order[-1]}
        for which, position in picks.items():
            throttle = Throttle(position, THROTTLED, plan.optimum / 2)
            name = f"drift, {kind}, {plan.tasks} tasks: the {which}"
            slowed = replace(plan, throttle=throttle)
            cases = {policy: lab.run(name, replace(slowed, policy=policy)) for policy in policies}
            hedged = lab.run(f"{name}, hedged", replace(slowed, hedge=True))
            yield _Drift(name, slowed, throttle, cases, hedged)


def throttled_optimum(times: Sequence[float], tasks: int, throttle: Throttle) -> float:
    """The time of the ``tasks``-th completion when every device is always busy.

    A call takes what its device takes at the call's start.
    """

    def after(device: int, start: float) -> float:
        slow = device == throttle.position and start >= throttle.after
        return start + times[device] * (throttle.factor if slow else 1.0)

    running = [(after(device, 0.0), device) for device in range(len(times))]
    heapq.heapify(running)
    for _ in range(tasks - 1):
        end, device = running[0]
        heapq.heapreplace(running, (after(device, end), device))
    return running[0][0]


def live(lab: Lab) -> None:
    """Tasks arrive one by one, at random, at a part of the total rate."""
    loads = lab.pick((0.5, 0.8, 0.95, 1.0, 1.2), (0.8,))
    asked = {
        (kind, load): _arriving(lab, f"live, {kind}: {load:.0%} of R", times, load)
        for kind, times in lab.pick(DEVICES.items(), list(DEVICES.items())[1:2])
        for load in loads
    }
    shown = asked["5 ms, 100 ms, 1 s", 0.8]
    samples = {p: [1000 * x for x in case.observed.latencies] for p, case in shown.items()}
    note = f"Poisson arrivals, {2 * TASKS} tasks, from the intended start."
    title = "Latency at 80 % of R: 5 ms, 100 ms, 1 s"
    lab.plot("latency", title, distributions(samples, "latency (ms)"), note)
    columns = ["case", *(f"{p}: {q}" for p in POLICIES[:2] for q in ("mean", "p50", "p99", "hold"))]
    note = (
        f"Poisson arrivals, {2 * TASKS} tasks, window 1024. Latency from the intended start: time "
        "a source is kept waiting counts. Theory: first come, first served, devices taken as alike."
    )
    rows = [_live_row(cases) for cases in asked.values()]
    lab.table("live sources", [*columns, "theory: mean"], rows, note)


def _arriving(lab: Lab, name: str, times: Sequence[float], load: float) -> dict[str, Case]:
    arrivals = load * theory.total_rate(times)
    plan = Plan(times, 2 * TASKS, arrivals=arrivals, seed=lab.context.seed)
    return {p: lab.run(name, replace(plan, policy=p), load=load) for p in POLICIES[:2]}


def _live_row(cases: Mapping[str, Case]) -> list[str]:
    first = cases["eft"]
    unordered = theory.response_time(first.plan.service_times, first.plan.arrivals)
    parts = [part for case in cases.values() for part in _latency(case)]
    return [first.name, *parts, seconds(unordered)]


def _latency(case: Case) -> list[str]:
    latencies = sorted(case.observed.latencies)
    mean, middle = sum(latencies) / len(latencies), latencies[len(latencies) // 2]
    tail = latencies[int(0.99 * len(latencies))]
    return [seconds(mean), seconds(middle), seconds(tail), seconds(case.observed.hold_mean)]


def added_device(lab: Lab) -> Check:
    """A device that is 1 to 1000 times slower than the fastest joins, at several windows."""
    slower = lab.pick((1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), (1, 30, 1000))
    widths = lab.pick((8, 16, 32, 64, 100, 256, 1024), (8, 100))
    bases = {
        "10 ms": (0.01,),
        "10, 20, 40, 80 ms": DEVICES["10, 20, 40, 80 ms"],
        "paper's 8 / 100": tuple(t / 100 for t in DEVICES["paper's 8"]),
    }
    kinds = lab.pick(bases.items(), list(bases.items())[:1])
    asked = {kind: _adding(lab, kind, times, slower, widths) for kind, times in kinds}
    ours: dict[str, float] = {}
    for kind, (alone, added) in asked.items():
        rows: list[list[str]] = []
        for factor, cases in added.items():
            gains = _gains(cases, alone)
            rows.append([f"{factor} x", *(f"{gain:.4f}" for gain in gains.values())])
            for w in widths:
                ours[f"{kind}, {factor} x slower, window {w}"] = gains[w, "eft"]
        columns = ["added", *(f"{policy}, W {w}" for w, policy in alone)]
        note = f"Throughput with the device / without it, ordered stream of {2 * TASKS} tasks."
        lab.table(f"adding a device to {kind}", columns, rows, note)
    claim = "adding a device never lowers ordered throughput by more than 1 %"
    return worst(claim, ours, 0.99, least=True)


def _adding(
    lab: Lab, kind: str, times: Sequence[float], slower: Sequence[int], widths: Sequence[int]
) -> tuple[_Cases, dict[int, _Cases]]:
    """Without another device, and with one by how many times slower it is."""
    alone = _in_windows(lab, f"adding to {kind}: none", times, widths)
    added: dict[int, _Cases] = {}
    for factor in slower:
        name, more = f"adding to {kind}: {factor} x slower", (*times, factor * min(times))
        added[factor] = _in_windows(lab, name, more, widths, added=factor)
    return alone, added


def _in_windows(
    lab: Lab, name: str, times: Sequence[float], widths: Sequence[int], **figures: Any
) -> _Cases:
    return {
        (w, p): lab.run(name, Plan(times, 2 * TASKS, w, policy=p), **figures)
        for w in widths
        for p in POLICIES[:2]
    }


def _gains(cases: _Cases, alone: _Cases) -> dict[tuple[int, str], float]:
    return {
        key: case.observed.throughput / alone[key].observed.throughput
        for key, case in cases.items()
    }
