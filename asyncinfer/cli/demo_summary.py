"""What the demo found, as figures and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asyncinfer.cli.demo_stage import NAMES, Stage, middle
from asyncinfer.cli.output import people, rate, seconds, table

__all__ = ("show", "summary", "verdict")

#: what to say when the best device alone was faster
SHARED = (
    "  Slower: all three share this host's cores and Python's lock, with each other and with "
    "whatever else runs here."
)

#: a device that does less than this part of the tasks does next to nothing
LITTLE = 0.05


def summary(stages: Sequence[Stage]) -> dict[str, Any]:
    """The one object that ``--json`` prints."""
    tasks = sum(len(stage.items) for stage in stages)
    elapsed = sum(middle(stage.together).seconds for stage in stages)
    alone = {name: tasks / _seconds_alone(stages, name) for name in NAMES}
    best = max(alone, key=alone.__getitem__)
    return {
        "tasks": tasks,
        "in_order": all(stage.in_order for stage in stages),
        "accuracy": next(a for stage in stages if (a := stage.accuracy) is not None),
        "throughput": tasks / elapsed,
        "best_single": best,
        "best_single_throughput": alone[best],
        "speedup": tasks / elapsed / alone[best],
        "seconds": elapsed,
        "devices": [_device(stages, row, elapsed) for row in range(len(NAMES))],
        "stages": [_stage(stage) for stage in stages],
    }


def _seconds_alone(stages: Sequence[Stage], name: str) -> float:
    """What one device needs for all stages, at its own rates."""
    return sum(len(stage.items) / middle(stage.alone[name]).rate for stage in stages)


def _device(stages: Sequence[Stage], row: int, elapsed: float) -> Mapping[str, Any]:
    """One device over all stages."""
    stats = [middle(stage.together).devices[row] for stage in stages]
    tasks = sum(device.tasks for device in stats)
    busy = sum(device.busy_seconds for device in stats)
    return {
        "name": stats[0].name,
        "tasks": tasks,
        "utilisation": busy / elapsed,
        "service_time": busy / tasks if tasks else None,
    }


def _stage(stage: Stage) -> Mapping[str, Any]:
    tasks, together = len(stage.items), middle(stage.together)
    took, best, ratios = together.seconds, stage.best_single, stage.ratios
    alone = {name: middle(outcomes).rate for name, outcomes in stage.alone.items()}
    batches = {device.name: device.options["max_batch"] for device in stage.devices}
    return {
        "model": stage.model.name,
        "heading": stage.heading,
        "tasks": tasks,
        "in_order": stage.in_order,
        "accuracy": stage.accuracy,
        "seconds": took,
        "throughput": tasks / took,
        "best_single": best,
        "best_single_throughput": alone[best],
        "speedup": statistics.median(ratios),
        "speedup_in_turns": ratios,
        "mean_hold": together.held,
        "devices": [
            {
                "name": device.name,
                "max_batch": batches[device.name],
                "tasks": device.tasks,
                "utilisation": device.busy_seconds / took,
                "service_time": device.busy_seconds / device.tasks if device.tasks else None,
                "rests": device.rests,
                "alone_throughput": alone[device.name],
                "alone_tasks": len(stage.alone[device.name][0].values),
            }
            for device in together.devices
        ],
    }


def show(facts: Mapping[str, Any]) -> None:
    """Print the tables of ``summary`` for people."""
    screen = people()
    columns = ("device", "batch", "tasks", "utilisation", "service time", "alone, tasks/s")
    for stage in facts["stages"]:
        rows = [
            (
                device["name"],
                device["max_batch"],
                device["tasks"],
                f"{device['utilisation']:.1%}",
                seconds(device["service_time"]),
                rate(device["alone_throughput"]),
            )
            for device in stage["devices"]
        ]
        screen.print()
        screen.print(table(columns, rows, title=stage["heading"]))
        for line in verdict(stage):
            screen.print(line, markup=False)
    screen.print()
    screen.print(f"{facts['tasks']} tasks, all in order: {'yes' if facts['in_order'] else 'NO'}")
    screen.print(f"digits right: {facts['accuracy']:.2%}")
    screen.print(f"timeline: {facts['timeline']}")


def verdict(stage: Mapping[str, Any]) -> Iterator[str]:
    """How all together compare with the best single device; who takes part, and why not others."""
    ratio, turns = stage["speedup"], stage["speedup_in_turns"]
    best = f"({stage['best_single']}, {rate(stage['best_single_throughput'])})"
    spread = f"{min(turns):.2f} to {max(turns):.2f} in {len(turns)} turns"
    idle = [device for device in stage["devices"] if device["tasks"] < LITTLE * stage["tasks"]]
    same = stage["best_single"] not in {device["name"] for device in idle} and (
        len(idle) + 1 == len(stage["devices"])
    )
    together = f"{rate(stage['throughput'])} tasks/s together,"
    if not min(turns) <= 1 <= max(turns):
        yield f"{together} {ratio:.2f} times the best single device {best}; {spread}"
    elif same:
        yield f"{together} as fast as the best single device {best}, which does it alone:"
        yield f"  1.00 times, within what the turns tell: {ratio:.2f}, {spread}"
    else:
        yield f"{together} as fast as the best single device {best}: {ratio:.2f} times; {spread}"
    for device in stage["devices"]:
        if device["rests"] is not None:
            yield f"  {device['name']} rests: {device['rests']}"
        elif not device["tasks"]:
            yield f"  {device['name']} rests: the others are done sooner with what is there"
    if max(turns) < 1:
        yield SHARED
