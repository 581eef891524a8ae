"""``asyncinfer simulate``: the real dispatcher on made-up devices and virtual time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from asyncinfer import theory
from asyncinfer.bench.simulated.simulation import Observed, Plan
from asyncinfer.bench.simulated.simulation import simulate as run_plan
from asyncinfer.cli.arguments import Json
from asyncinfer.cli.output import emit, people, seconds, table
from asyncinfer.cli.timeline import Timeline, check_picture, picture
from asyncinfer.cli.tools import device_facts
from asyncinfer.errors import ConfigError

__all__ = ("simulate",)


#: most devices that people are shown one by one
SHOWN = 40


def simulate(
    service_times: Annotated[
        list[float],
        typer.Option("--service-times", help="Seconds per task of each device.", metavar="T..."),
    ],
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 1000,
    window: Annotated[int, typer.Option(min=1, help="Tasks in flight in order.")] = 1024,
    noise: Annotated[
        float, typer.Option(min=0.0, help="Sigma of a log-normal factor of mean 1 on each time.")
    ] = 0.0,
    policy: Annotated[str, typer.Option(help="eft, greedy, static, sync or serial.")] = "eft",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 42,
    spread: Annotated[
        int, typer.Option(min=0, help="So many devices between the least and the greatest time.")
    ] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Save the Gantt chart to this file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Try made-up devices in virtual time.

    The real dispatcher runs on simulated devices, and is compared with the optimum.

    asyncinfer simulate --service-times 0.005 0.1 1.0 --tasks 1000 --window 100
    """
    check_picture(plot)
    for t in service_times:
        if not (t > 0 and math.isfinite(t)):
            raise ConfigError(f"--service-times: give seconds above 0, not {t}")
    times = _spread(service_times, spread) if spread else service_times
    plan = Plan(times, tasks, window, noise, policy, seed)
    timeline = Timeline(driver.name for driver in plan.drivers())
    facts = _facts(plan, run_plan(plan, on_event=timeline))
    if plot:
        title = f"{policy}, window {window}: {facts['ratio']:.3f} x optimum"
        picture(plot, {title: timeline})
    if as_json:
        emit(facts)
    else:
        _show(facts, timeline)


def _spread(times: Sequence[float], devices: int) -> list[float]:
    """From the least time to the greatest, each longer than the one before by the same factor."""
    least, greatest = min(times), max(times)
    if least <= 0:
        return list(times)
    steps = max(1, devices - 1)
    return [least * (greatest / least) ** (n / steps) for n in range(devices)]


def _facts(plan: Plan, observed: Observed) -> dict[str, Any]:
    """What was asked for, what came out, and what theory says for the mean service times."""
    times, tasks, makespan, stats = (
        plan.service_times,
        plan.tasks,
        observed.makespan,
        observed.stats,
    )
    asked = ("service_times", "tasks", "window", "noise", "policy", "seed")
    return {
        **{name: getattr(plan, name) for name in asked},
        "in_order": observed.tasks == tasks,
        "makespan": makespan,
        "utilisation": observed.utilisation,
        "throughput": observed.throughput,
        "cost_per_task": observed.cpu_seconds / tasks,
        "mean_hold": stats.hold_mean,
        "max_hold": stats.hold_max,
        "max_reorder": stats.max_reorder,
        "devices": [device_facts(device, makespan) for device in stats.devices],
        "optimum": plan.optimum,
        "ratio": makespan / plan.optimum,
        "window_needed": plan.window_needed,
        "windowed_optimum": plan.windowed_optimum,
        "windowed_ratio": makespan / plan.windowed_optimum,
        "total_rate": theory.total_rate(times),
        "formulas": {
            "plain_pull": theory.greedy_makespan(times, tasks),
            "equal_split": theory.static_makespan(times, tasks),
            "lock_step": theory.lockstep_makespan(times, tasks),
        },
    }


def _show(facts: Mapping[str, Any], timeline: Timeline) -> None:
    screen = people()
    if len(facts["devices"]) <= SHOWN:
        _show_devices(facts, timeline)
    for name, value in _lines(facts):
        screen.print(f"{name:<13} {value}")


def _show_devices(facts: Mapping[str, Any], timeline: Timeline) -> None:
    screen = people()
    chart = timeline.text(max(20, min(100, screen.width - 30)))
    screen.print(Text(chart, no_wrap=True))
    screen.print()
    rows = [
        (
            device["name"],
            device["tasks"],
            f"{device['utilisation']:.1%}",
        )
        for device in facts["devices"]
    ]
    screen.print(table(("device", "tasks", "utilisation"), rows))
    screen.print()


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    needed, window = facts["window_needed"], facts["window"]
    best = f"{seconds(facts['optimum'])} ({facts['ratio']:.4f} times that)"
    if window < needed:
        best += f"; in order in this window {seconds(facts['windowed_optimum'])}"
    return [
        ("makespan", seconds(facts["makespan"])),
        ("optimum", best),
        ("utilisation", f"{facts['utilisation']:.1%}"),
        ("throughput", f"{facts['throughput']:.4g} tasks/s of {facts['total_rate']:.4g}"),
        ("hold", f"mean {seconds(facts['mean_hold'])}, longest {seconds(facts['max_hold'])}"),
        ("reorder", f"{facts['max_reorder']} results at most"),
        ("window", f"{window}; every device takes part from {needed}"),
        ("cost", f"{seconds(facts['cost_per_task'])} of this computer's time a task"),
    ]
