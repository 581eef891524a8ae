"""The suite ``paper``: the literature's policies and ours, on its devices, beside its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from asyncinfer import theory
from asyncinfer._text import rate, seconds
from asyncinfer.bench.measure import median_spread
from asyncinfer.bench.record import Outcome, Table
from asyncinfer.bench.simulated import checks
from asyncinfer.bench.simulated.claims import claims
from asyncinfer.bench.simulated.lab import DEVICES, POLICIES, Case, Lab
from asyncinfer.bench.simulated.named import Timed, timed
from asyncinfer.bench.simulated.simulation import Plan, mean
from asyncinfer.bench.simulated.timeline import Timeline, draw
from asyncinfer.bench.suite import Context
from asyncinfer.stats import percentile

__all__ = ("run",)

PAPER = "paper's 8"
#: real time runs at this part of the paper's seconds
SCALE = 0.01


def run(context: Context) -> Outcome:
    """Virtual time, real time, and what the claims are worth."""
    lab = Lab("paper", context)
    devices, skipped = timed(context, lab.pick((5,), (1,))[0])
    lab.outcome.skipped += skipped
    eight = {tasks: _compared(lab, PAPER, Plan(DEVICES[PAPER], tasks)) for tasks in (1000, 100)}
    noisy = Plan(DEVICES[PAPER], 1000, noise=0.3, seed=context.seed)
    eight_noisy = _compared(lab, PAPER, noisy)
    far = _compared(lab, "5 ms, 100 ms, 1 s", Plan(DEVICES["5 ms, 100 ms, 1 s"], 1000, 100))
    named = _named(lab, devices)
    _timelines(lab)
    _in_real_time(lab)
    lab.outcome.checks += [
        *checks.makespan_checks(lab.cases),
        checks.hold_check(lab.cases),
        checks.noise_check(lab.cases),
        *claims(eight[1000], eight_noisy, far, named),
    ]
    return lab.finished()


def _compared(lab: Lab, kind: str, plan: Plan, note: str = "") -> dict[str, Case]:
    """Every policy on the same plan, beside the theory."""
    cases = {p: lab.run(kind, _serial_on_slowest(replace(plan, policy=p))) for p in POLICIES}
    noise = f", noise {plan.noise:g}" if plan.noise else ""
    title = f"{kind}: {plan.tasks} tasks, window {plan.window:g}{noise}"
    columns = ["policy", "makespan", "theory", "x optimum", "tasks/s", "of R", "utilisation"]
    columns += ["start to delivery: mean", "p99", "hold", "reorder"]
    total = theory.total_rate(plan.service_times)
    formulas = _formulas(plan)
    rows = []
    for policy, case in cases.items():
        seen = case.observed
        rows.append(
            [
                policy,
                seconds(seen.makespan),
                seconds(formulas[policy]),
                f"{case.ratio:.4f}",
                rate(seen.throughput),
                f"{seen.throughput / total:.1%}",
                f"{seen.utilisation:.1%}",
                seconds(mean(seen.responses)),
                seconds(percentile(seen.responses, 0.99)),
                seconds(seen.hold_mean if seen.hold_mean > 1e-9 else 0.0),
                str(seen.stats.max_reorder),
            ]
        )
    own = (
        f"R = {total:.4g} tasks/s; a task spends {seconds(len(plan.service_times) / total)} on its "
        "device if all are busy. Theory: without noise and, but for eft, without a window. "
        "Serial: the slowest device alone."
    )
    lab.table(title, columns, rows, f"{note} {own}".strip())
    return cases


def _serial_on_slowest(plan: Plan) -> Plan:
    """Serial runs everything on the first device: put the slowest there."""
    if plan.policy != "serial":
        return plan
    order = sorted(range(len(plan.service_times)), key=lambda i: -plan.service_times[i])
    names = [plan.names[i] for i in order] if plan.names else ()
    return replace(plan, service_times=[plan.service_times[i] for i in order], names=names)


def _formulas(plan: Plan) -> Mapping[str, float]:
    times, tasks = plan.service_times, plan.tasks
    return {
        "eft": plan.windowed_optimum,
        "greedy": theory.greedy_makespan(times, tasks),
        "static": theory.static_makespan(times, tasks),
        "sync": theory.lockstep_makespan(times, tasks),
        "serial": tasks * max(times),
    }


def _named(lab: Lab, devices: Sequence[Timed]) -> dict[str, Case]:
    """The devices that were asked for, by the service times they show."""
    if not devices:
        return {}
    rows = [(device.name, seconds(device.service_time), device.note) for device in devices]
    note = "Measured on the devices themselves where they run a model."
    lab.outcome.tables.append(Table("named devices", ["device", "service time", ""], rows, note))
    times = [device.service_time for device in devices]
    plan = Plan(times, 1000, names=[device.name for device in devices])
    note = "Service times as measured, then kept."
    _compared(lab, "named devices", replace(plan, tasks=100), note)
    return _compared(lab, "named devices", plan, note)


def _timelines(lab: Lab) -> None:
    """Who runs what when, in a window that the plain pull stands still in."""
    plan = Plan((0.005, 0.1, 1.0), 300, 100)
    for policy in POLICIES[:2]:
        chart = Timeline(driver.name for driver in plan.drivers())
        case = lab.run("timeline", replace(plan, policy=policy), on_event=chart)
        title = f"{policy}: 300 tasks, window 100, {case.ratio:.3f} x optimum"
        lab.plot(f"timeline-{policy}", title, partial(draw, timeline=chart))


def _in_real_time(lab: Lab) -> None:
    """The paper's devices a hundred times faster, on the clock on the wall, policies in turns."""
    times = [t * SCALE for t in DEVICES[PAPER]]
    size = lab.pick((400,), (80,))[0]
    plans = {
        policy: _serial_on_slowest(Plan(times, max(8, size // share), policy=policy))
        for policy, share in zip(POLICIES, (1, 1, 2, 2, 8), strict=True)
    }
    cases: dict[str, list[Case]] = {policy: [] for policy in plans}
    for turn in range(1, lab.context.runs + 1):
        for policy in list(plans)[:: 1 if turn % 2 else -1]:
            name = f"{PAPER} x {SCALE:g}, real time"
            cases[policy].append(lab.run(name, plans[policy], run=turn, virtual=False))
    serial = median_spread(case.observed.throughput for case in cases["serial"]).median
    rows = [_timed_row(policy, runs, serial) for policy, runs in cases.items()]
    columns = ["policy", "tasks", "tasks/s: median", "least", "most", "of R", "x serial"]
    columns += ["x optimum of the timers", "utilisation", "hold"]
    note = (
        f"Simulated devices that sleep on the event loop; medians of {lab.context.runs} runs in "
        "turns. Timers have a grain of 1 ms and sleep longer on a busy machine, so makespans are "
        "also held against the optimum for the times they gave. Serial: the slowest device alone."
    )
    title = f"{PAPER}, in real time at 1/{1 / SCALE:g}"
    lab.outcome.tables.append(Table(title, columns, rows, note))


def _timed_row(policy: str, runs: Sequence[Case], serial: float) -> list[str]:
    speed = median_spread(case.observed.throughput for case in runs)
    plan = runs[0].plan
    return [
        policy,
        str(plan.tasks),
        *(f"{value:.1f}" for value in speed),
        f"{speed.median / plan.total_rate:.1%}",
        f"{speed.median / serial:.2f}",
        f"{median_spread(map(_against_timers, runs)).median:.3f}",
        f"{median_spread(case.observed.utilisation for case in runs).median:.1%}",
        seconds(median_spread(case.observed.hold_mean for case in runs).median),
    ]


def _against_timers(case: Case) -> float:
    """Makespan / optimum for the service times that were really slept."""
    devices = zip(case.observed.stats.devices, case.plan.service_times, strict=True)
    slept = [device.busy_seconds / device.tasks if device.tasks else t for device, t in devices]
    return case.observed.makespan / theory.optimum_makespan(slept, case.plan.tasks)
