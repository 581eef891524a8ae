"""``asyncinfer demo``: real models, real pictures, unequal devices of this host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from asyncinfer.cli.arguments import Json
from asyncinfer.cli.output import emit, note, people, seconds, table
from asyncinfer.cli.timeline import Timeline, check_picture, picture
from asyncinfer.cli.tools import optional, run_async
from asyncinfer.config import STAND_IN_SLOWDOWN, DeviceConfig
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError
from asyncinfer.model import Model, resolve
from asyncinfer.result import Result
from asyncinfer.stats import DeviceStats

__all__ = ("demo",)

#: tasks the batching device takes at once, by model
BATCHES = {"efficientnet_lite0": 4, "digits": 64}

#: what to say when the best device alone was faster
SHARED = (
    "  Slower: these devices share this host's cores and Python's lock, and calls of microseconds "
    "keep one another waiting."
)

Show = Callable[[int, Any], None]


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="How often the pictures are shown.")] = 8,
    output: Annotated[Path, typer.Option(help="Where the timeline is saved.")] = Path(
        "asyncinfer-demo.png"
    ),
    as_json: Json = False,
) -> None:
    """Classify pictures and handwritten digits on three unequal devices of this host.

    Every figure is measured in this run: first each device alone, then all together, on the same
    inputs. Results are compared with a plain loop over the model. Takes about half a minute.
    """
    check_picture(output)
    stages = [
        Stage.of("pictures", "efficientnet_lite0", rounds),
        Stage.of("digits", "digits", 1),
    ]
    for stage in stages:
        _run(stage, as_json)
    picture(output, {stage.heading: stage.together.timeline for stage in stages})
    facts = _facts(stages) | {"timeline": str(output)}
    if as_json:
        emit(facts)
    else:
        _show(facts)
    if not facts["in_order"]:
        raise AsyncInferError("results differ from those of a plain loop, or came out of order")


@dataclass
class Outcome:
    """What came out of one pass over a stage's inputs."""

    timeline: Timeline
    values: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    first: float = math.inf
    last: float = -math.inf
    devices: Sequence[DeviceStats] = ()
    held: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first start to the last result."""
        return self.last - self.first

    def take(self, result: Result[Any]) -> None:
        """Keep one result; a failed task ends the demo."""
        self.values.append(result.unwrap())
        self.indices.append(result.index)
        self.first = min(self.first, result.started)
        self.last = max(self.last, result.finished)


@dataclass
class Stage:
    """One model with its inputs, what it should return, and what was measured."""

    title: str
    model: Model
    names: Sequence[str]
    items: Sequence[Any]
    targets: Sequence[Any] | None
    rounds: int
    alone: dict[str, Outcome] = field(default_factory=dict)
    together: Outcome = field(default_factory=lambda: Outcome(Timeline(())))
    expected: Sequence[Any] = ()

    @classmethod
    def of(cls, title: str, name: str, rounds: int) -> Stage:
        """The stage for a built-in model, its inputs in memory."""
        model = resolve(name)
        assert model.inputs is not None  # noqa: S101  # built-in models have some
        inputs = model.inputs
        items = list(inputs.items) * rounds
        return cls(title, model, list(inputs.names) * rounds, items, inputs.targets, rounds)

    @property
    def heading(self) -> str:
        """Its line above tables and charts."""
        times = f" x {self.rounds} rounds" if self.rounds > 1 else ""
        distinct = len(self.items) // self.rounds
        return f"{self.model.name}: {distinct} {self.title}{times}"

    @property
    def devices(self) -> list[DeviceConfig]:
        """Three devices that share this host's cores."""
        batch = BATCHES[self.model.name]
        one = {"device": "cpu", "threads": 1}
        slow = {**one, "slowdown": STAND_IN_SLOWDOWN}
        return [
            DeviceConfig("torch", f"batch-{batch}", {**one, "device": "auto", "max_batch": batch}),
            DeviceConfig("torch", "one-by-one", one),
            DeviceConfig("torch", "raspberry_pi (stand-in)", slow),
        ]

    @property
    def in_order(self) -> bool:
        """Whether all results came, in their place, and are those of a plain loop."""
        outcome = self.together
        numbered = outcome.indices == list(range(len(self.items)))
        return numbered and outcome.values == list(self.expected)

    @property
    def accuracy(self) -> float | None:
        """The share of results equal to the targets."""
        if self.targets is None:
            return None
        pairs = zip(self.together.values, self.targets, strict=True)
        right = sum(bool(value == target) for value, target in pairs)
        return right / len(self.targets)


def _run(stage: Stage, quiet: bool) -> None:
    note(f"{stage.heading}: a plain loop over the model, then each device alone")
    stage.expected = _plain_loop(stage)
    for device in stage.devices:
        stage.alone[device.name] = run_async(_pass(stage, [device]))
        rate = len(stage.items) / stage.alone[device.name].seconds
        note(f"  {device.name}: {rate:.4g} tasks/s")
    note(f"{stage.heading}: all devices together")
    stage.together = run_async(_pass(stage, stage.devices, None if quiet else _shower(stage)))


def _plain_loop(stage: Stage) -> list[Any]:
    """What the model returns without any of this project: one input after another."""
    torch, model = optional("torch", "the demo"), stage.model
    assert model.builtin is not None  # noqa: S101  # stages have built-in models
    before, after, module = model.builtin.preprocess, model.builtin.postprocess, model.loaded
    distinct = len(stage.items) // stage.rounds
    with torch.inference_mode():
        outputs = [after(module(before(x)[None])[0]) for x in stage.items[:distinct]]
    return outputs * stage.rounds


async def _pass(stage: Stage, devices: Sequence[DeviceConfig], show: Show | None = None) -> Outcome:
    outcome = Outcome(Timeline([device.name for device in devices]))
    drivers = [device.build(stage.model) for device in devices]
    async with Dispatcher(drivers, on_event=outcome.timeline) as dispatcher:
        async for result in dispatcher.results(stage.items):
            outcome.take(result)
            if show:
                show(result.index, outcome.values[-1])
        stats = dispatcher.stats()
    outcome.devices, outcome.held = stats.devices, stats.hold_mean
    return outcome


def _shower(stage: Stage) -> Show:
    """Prints results as they arrive: a line for each picture, digits close together."""

    def show(index: int, value: Any) -> None:
        if stage.targets is not None:
            print(value, end="" if (index + 1) % 60 else "\n", flush=True)
            if index + 1 == len(stage.items):
                print()
        elif index < len(stage.items) // stage.rounds:
            print(f"  {stage.names[index]:<16} {value}", flush=True)

    return show


def _facts(stages: Sequence[Stage]) -> dict[str, Any]:
    tasks = sum(len(stage.items) for stage in stages)
    elapsed = sum(stage.together.seconds for stage in stages)
    alone = {name: tasks / took for name, took in _alone(stages)}
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
        "devices": [_device(stages, row, elapsed) for row in range(len(stages[0].devices))],
        "stages": [_stage(stage) for stage in stages],
    }


def _alone(stages: Sequence[Stage]) -> Iterator[tuple[str, float]]:
    """Seconds each device needs alone for all stages; the devices of a row are one device."""
    for row, device in enumerate(stages[0].devices):
        names = [stage.devices[row].name for stage in stages]
        took = sum(stage.alone[n].seconds for stage, n in zip(stages, names, strict=True))
        yield _common_name(device.name), took


def _common_name(name: str) -> str:
    return name.partition("-")[0] if name.startswith("batch-") else name


def _device(stages: Sequence[Stage], row: int, elapsed: float) -> Mapping[str, Any]:
    """One device over all stages."""
    stats = [stage.together.devices[row] for stage in stages]
    tasks = sum(device.tasks for device in stats)
    busy = sum(device.busy_seconds for device in stats)
    return {
        "name": _common_name(stats[0].name),
        "tasks": tasks,
        "utilisation": busy / elapsed,
        "service_time": busy / tasks if tasks else None,
    }


def _stage(stage: Stage) -> Mapping[str, Any]:
    tasks, took = len(stage.items), stage.together.seconds
    alone = {name: tasks / outcome.seconds for name, outcome in stage.alone.items()}
    best = max(alone, key=alone.__getitem__)
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
        "speedup": tasks / took / alone[best],
        "mean_hold": stage.together.held,
        "devices": [
            {
                "name": device.name,
                "tasks": device.tasks,
                "utilisation": device.busy_seconds / took,
                "service_time": device.busy_seconds / device.tasks if device.tasks else None,
                "alone_throughput": alone[device.name],
            }
            for device in stage.together.devices
        ],
    }


def _show(facts: Mapping[str, Any]) -> None:
    screen = people()
    columns = ("device", "tasks", "utilisation", "service time", "alone")
    for stage in facts["stages"]:
        rows = [
            (
                device["name"],
                device["tasks"],
                f"{device['utilisation']:.1%}",
                seconds(device["service_time"]),
                f"{device['alone_throughput']:.4g} tasks/s",
            )
            for device in stage["devices"]
        ]
        screen.print()
        screen.print(table(columns, rows, title=stage["heading"]))
        screen.print(
            f"{stage['throughput']:.4g} tasks/s together, {stage['speedup']:.2f} times the best "
            f"single device ({stage['best_single']}, {stage['best_single_throughput']:.4g})"
        )
        if stage["speedup"] < 1:
            screen.print(SHARED)
    screen.print()
    screen.print(f"{facts['tasks']} tasks, all in order: {'yes' if facts['in_order'] else 'NO'}")
    screen.print(f"digits right: {facts['accuracy']:.2%}")
    screen.print(f"timeline: {facts['timeline']}")
