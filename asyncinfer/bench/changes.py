"""What the ablation changes during a run: a device's speed, a live source, the set of devices."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from asyncinfer import theory
from asyncinfer.bench.checks import worst
from asyncinfer.bench.lab import DEVICES, POLICIES, Case, Lab
from asyncinfer.bench.plots import distributions
from asyncinfer.bench.record import Check
from asyncinfer.bench.simulation import Plan, Throttle
from asyncinfer.bench.text import seconds

__all__ = ("added_device", "drift", "live", "throttled_optimum")

TASKS = 1000
#: what a throttled device becomes slower by
THROTTLED = 4.0
#: a call that takes more of the whole job decides it, unless it is run elsewhere too
DECISIVE = 0.1
#: policies that can be simulated with many tasks
_QUICK = ("eft", "greedy", "serial")


def drift(lab: Lab) -> Check:
    """One device throttles half way; nothing tells the dispatcher."""
    rows: list[list[str]] = []
    losses: dict[str, float] = {}
    decided: list[str] = []
    far = "5 ms, 100 ms, 1 s"
    plans = [(kind, Plan(times, TASKS)) for kind, times in DEVICES.items()]
    long = (far, Plan(DEVICES[far], 10 * TASKS))
    for kind, plan in lab.pick([*plans, long], plans[:1]):
        order = sorted(range(len(plan.service_times)), key=lambda i: plan.service_times[i])
        picks = {"fastest": order[0], "middle": order[len(order) // 2], "slowest": order[-1]}
        for which, position in picks.items():
            throttle = Throttle(position, THROTTLED, plan.optimum / 2)
            name = f"drift, {kind}, {plan.tasks} tasks: the {which}"
            cases = {
                policy: lab.run(name, replace(plan, policy=policy, throttle=throttle))
                for policy in (_QUICK if lab.context.short or plan is long[1] else POLICIES)
            }
            makespans = {policy: case.observed.makespan for policy, case in cases.items()}
            best = throttled_optimum(plan.service_times, plan.tasks, throttle)
            hedged = lab.run(f"{name}, hedged", replace(plan, throttle=throttle, hedge=True))
            makespan = makespans["eft"]
            if THROTTLED * plan.service_times[position] > DECISIVE * best:
                decided.append(f"{name} (unhedged {makespan / min(makespans.values()):.4f})")
                makespan = hedged.observed.makespan
            losses[name] = makespan / min(makespans.values())
            cells = [f"{makespans[p] / best:.4f}" if p in cases else "-" for p in POLICIES]
            cells.append(f"{hedged.observed.makespan / best:.4f}")
            rows.append([name, *cells, seconds(cases["eft"].observed.hold_mean)])
    columns = ["case", *(f"{p}: x optimum" for p in POLICIES), "eft, hedged", "eft: hold"]
    note = f"Service time x {THROTTLED:g} half way, window 1024; against an optimum that knows it."
    lab.table("drift", columns, rows, note)
    claim = "makespan <= 1.03 of the best policy in hindsight under drift"
    why = (
        f"with hedge=True where one call takes over {DECISIVE:.0%} of the job: {', '.join(decided)}"
    )
    return worst(claim, losses, 1.03, why=why if decided else "")


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
    rows: list[list[str]] = []
    for kind, times in lab.pick(DEVICES.items(), list(DEVICES.items())[1:2]):
        rate = theory.total_rate(times)
        for load in loads:
            plan = Plan(times, 2 * TASKS, arrivals=load * rate, seed=lab.context.seed)
            name = f"live, {kind}: {load:.0%} of R"
            cases = {p: lab.run(name, replace(plan, policy=p), load=load) for p in POLICIES[:2]}
            unordered = theory.response_time(times, plan.arrivals)
            rows.append([name, *(part for p in cases for part in _latency(cases[p]))])
            rows[-1].append(seconds(unordered))
            if load == 0.8 and kind == "5 ms, 100 ms, 1 s":
                title = "Latency at 80 % of R: 5 ms, 100 ms, 1 s"
                note = f"Poisson arrivals, {2 * TASKS} tasks, from the intended start."
                samples = {p: [1000 * x for x in cases[p].observed.latencies] for p in cases}
                lab.plot("latency", title, distributions(samples, "latency (ms)"), note)
    columns = ["case", *(f"{p}: {q}" for p in POLICIES[:2] for q in ("mean", "p50", "p99", "hold"))]
    note = (
        f"Poisson arrivals, {2 * TASKS} tasks, window 1024. Latency from the intended start: time "
        "a source is kept waiting counts. Theory: first come, first served, devices taken as alike."
    )
    lab.table("live sources", [*columns, "theory: mean"], rows, note)


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
    gains: dict[str, float] = {}
    for kind, times in lab.pick(bases.items(), list(bases.items())[:1]):
        rows: list[list[str]] = []
        alone = {
            (w, p): lab.run(f"adding to {kind}: none", Plan(times, 2 * TASKS, w, policy=p))
            for w in widths
            for p in POLICIES[:2]
        }
        for factor in slower:
            rows.append([f"{factor} x"])
            for w, policy in alone:
                plan = Plan((*times, factor * min(times)), 2 * TASKS, w, policy=policy)
                case = lab.run(f"adding to {kind}: {factor} x slower", plan, added=factor)
                gain = case.observed.throughput / alone[w, policy].observed.throughput
                rows[-1].append(f"{gain:.4f}")
                if policy == "eft":
                    gains[f"{kind}, {factor} x slower, window {w}"] = gain
        columns = ["added", *(f"{policy}, W {w}" for w, policy in alone)]
        note = f"Throughput with the device / without it, ordered stream of {2 * TASKS} tasks."
        lab.table(f"adding a device to {kind}", columns, rows, note)
    claim = "adding a device never lowers ordered throughput by more than 1 %"
    return worst(claim, gains, 0.99, least=True)
