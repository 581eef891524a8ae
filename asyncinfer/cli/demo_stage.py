"""What the demo runs: a model, its inputs and devices, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asyncinfer.cli.timeline import Timeline
from asyncinfer.cli.tools import optional
from asyncinfer.config import DeviceConfig, select
from asyncinfer.model import InputSet, Model, resolve
from asyncinfer.result import Result
from asyncinfer.stats import DeviceStats

__all__ = ("NAMES", "Outcome", "Stage", "middle")

#: the three devices: the same in every stage, but for how many tasks each takes at once
NAMES = ("cpu-batching", "cpu", "raspberry_pi (stand-in)")
BATCHES = {"efficientnet_lite0": (4, 1, 1), "digits": (64, 48, 64)}


@dataclass
class Outcome:
    """What came out of one pass over a stage's inputs."""

    timeline: Timeline
    values: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    first: float = math.inf
    last: float = -math.inf
    devices: Sequence[DeviceStats] = ()
    waited: float = 0.0

    @property
    def held(self) -> float:
        """Mean seconds for which a result waited for those before it."""
        return self.waited / len(self.values)

    @property
    def seconds(self) -> float:
        """From the first start to the last result."""
        return self.last - self.first

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return len(self.values) / self.seconds

    def take(self, result: Result[Any]) -> None:
        """Keep one result; a failed task ends the demo."""
        self.values.append(result.unwrap())
        self.indices.append(result.index)
        self.first = min(self.first, result.started)
        self.last = max(self.last, result.finished)
        self.waited += result.delivered - result.finished


def _files(inputs: InputSet, folder: Path) -> list[Path]:
    """The inputs, greyscale pictures from 0 to 16, as PNG files."""
    images, numpy = optional("PIL.Image", "the demo"), optional("numpy", "the demo")
    files = [folder / f"{name}.png" for name in inputs.names]
    for file, item in zip(files, inputs.items, strict=True):
        images.fromarray((numpy.asarray(item) * (255 / 16)).astype("uint8")).save(file)
    return files


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    """The pass in the middle by its rate."""
    return sorted(outcomes, key=lambda outcome: outcome.rate)[len(outcomes) // 2]


@dataclass
class Stage:
    """One model with its inputs, what it should return, and what was measured."""

    title: str
    model: Model
    names: Sequence[str]
    items: Sequence[Any]
    targets: Sequence[Any] | None
    rounds: int
    expected: Sequence[Any] = ()
    #: the passes of each device alone, and of all together, one each turn
    alone: dict[str, list[Outcome]] = field(default_factory=dict)
    together: list[Outcome] = field(default_factory=list)

    @classmethod
    def of(cls, title: str, name: str, rounds: int, folder: Path | None = None) -> Stage:
        """The stage for a built-in model, its inputs in memory, or as files in ``folder``."""
        model = resolve(name)
        assert model.inputs is not None  # noqa: S101  # built-in models have some
        inputs = model.inputs
        items = list(inputs.items) if folder is None else _files(inputs, folder)
        return cls(
            title, model, list(inputs.names) * rounds, items * rounds, inputs.targets, rounds
        )

    @property
    def heading(self) -> str:
        """Its line above tables and charts."""
        times = f" x {self.rounds} rounds" if self.rounds > 1 else ""
        return f"{self.model.name}: {self.distinct} {self.title}{times}"

    @property
    def distinct(self) -> int:
        """The number of inputs of one round."""
        return len(self.items) // self.rounds

    def slowdown(self, name: str) -> float:
        """How many times slower than this host a device is made."""
        (device,) = (device for device in self.devices if device.name == name)
        return float(device.options.get("slowdown", 1.0))

    def tasks_alone(self, name: str) -> int:
        """How many tasks of a pass a device gets alone: the slowed one a part of one round."""
        slowdown = self.slowdown(name)
        return len(self.items) if slowdown == 1 else max(3, round(self.distinct / slowdown))

    @property
    def best_single(self) -> str:
        """The device that does most alone, of those that are not slowed."""
        candidates = [name for name in self.alone if self.slowdown(name) == 1]
        return max(candidates, key=lambda name: middle(self.alone[name]).rate)

    @property
    def ratios(self) -> list[float]:
        """What all together did in each turn, in units of what the best device did in it alone."""
        pairs = zip(self.together, self.alone[self.best_single], strict=True)
        return [together.rate / alone.rate for together, alone in pairs]

    @property
    def devices(self) -> list[DeviceConfig]:
        """Three devices that share this host's cores; the last is a server in a second process."""
        first, second, third = NAMES
        batches = BATCHES[self.model.name]
        one = {"device": "cpu", "threads": 1}
        (pi,) = select(["raspberry_pi"])
        return [
            DeviceConfig("torch", first, {**one, "device": "auto", "max_batch": batches[0]}),
            DeviceConfig("torch", second, {**one, "max_batch": batches[1], "isolation": "process"}),
            replace(pi, name=third, options={**pi.options, "max_batch": batches[2]}),
        ]

    @property
    def in_order(self) -> bool:
        """Whether all results came, in their place, and are those of a plain loop, in each pass."""
        numbers, expected = list(range(len(self.items))), list(self.expected)
        return all(one.indices == numbers and one.values == expected for one in self.together)

    @property
    def accuracy(self) -> float | None:
        """The share of results equal to the targets."""
        if self.targets is None:
            return None
        pairs = zip(self.together[0].values, [*self.targets] * self.rounds, strict=True)
        return sum(bool(value == target) for value, target in pairs) / len(self.items)
