"""``asyncinfer simulate``: the real dispatcher on made-up devices and virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from asyncinfer import theory
from asyncinfer.bench.simulated.hosts import Place, Sharing, parse_device, parse_hosts
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
        list[str],
        typer.Option(
            "--service-times",
            help="Seconds per task of each device; for one on a host, T@HOST or T@HOST:CORES, "
            "the cores its calls want (1).",
            metavar="T...",
        ),
    ],
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 1000,
    window: Annotated[int, typer.Option(min=1, help="Tasks in flight in order.")] = 1024,
    noise: Annotated[
        float, typer.Option(min=0.0, help="Sigma of a log-normal factor of mean 1 on each time.")
    ] = 0.0,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="A host whose cores its devices share: NAME:CORES, or NAME:CORES:CONTENTION if "
            "each further call slows the others by so much besides.",
            metavar="HOST...",
            show_default=False,
        ),
    ] = None,
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

    asyncinfer simulate --host pi:2:0.1 --service-times 0.01@pi 0.02@pi:2 0.1
    """
    check_picture(plot)
    times, places = _devices(service_times, host or [])
    if spread and places:
        raise ConfigError("--spread makes devices of their own: leave out --host, or --spread")
    times = _spread(times, spread) if spread else times
    plan = Plan(times, tasks, window, noise, policy, seed, places=places)
    timeline = Timeline(driver.name for driver in plan.drivers())
    facts = _facts(plan, run_plan(plan, on_event=timeline))
    if plot:
        title = f"{policy}, window {window}: {facts['ratio']:.3f} x optimum"
        picture(plot, {title: timeline})
    if as_json:
        emit(facts)
    else:
        _show(facts, timeline)


def _devices(
    service_times: Sequence[str], given: Sequence[str]
) -> tuple[list[float], list[Place | None]]:
    """Their times, and their places if there are hosts, each of which must have a device."""
    hosts = parse_hosts(given)
    devices = [parse_device(text, hosts) for text in service_times]
    used = {place.host.name for _, place in devices if place}
    for name in hosts:
        if name not in used:
            raise ConfigError(f"--host {name}: no device is on it: write --service-times T@{name}")
    return [t for t, _ in devices], [place for _, place in devices] if hosts else []


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
        "total_rate": plan.total_rate,
        "hosts": [_host_facts(sharing, observed.devices) for sharing in plan.sharings],
        "formulas": {
            "plain_pull": theory.greedy_makespan(times, tasks),
            "equal_split": theory.static_makespan(times, tasks),
            "lock_step": theory.lockstep_makespan(times, tasks),
        }
        if not plan.places
        else {},
    }


def _host_facts(sharing: Sharing, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": sharing.host.name,
        "cores": sharing.host.cores,
        "contention": sharing.host.contention,
        "devices": [names[at] for at in sharing.devices],
        "best": [names[at] for at in sharing.best],
        "rate": sharing.rate,
        "rate_of_all": sharing.rate_of_all,
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
        *((f"host {host['name']}", _host_line(host)) for host in facts["hosts"]),
    ]


def _host_line(host: Mapping[str, Any]) -> str:
    best = f"{len(host['best'])} of {len(host['devices'])}: {', '.join(host['best'])}"
    return f"most by {best}: {host['rate']:.4g} tasks/s, all {host['rate_of_all']:.4g} tasks/s"
