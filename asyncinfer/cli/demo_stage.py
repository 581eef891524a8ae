"""What the demo runs: a model, its inputs and devices, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from asyncinfer.cli.timeline import Timeline
from asyncinfer.config import DeviceConfig, select
from asyncinfer.model import Model, resolve
from asyncinfer.result import Result
from asyncinfer.stats import DeviceStats

__all__ = ("NAMES", "Outcome", "Stage")

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
    held: float = 0.0

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
    #: the best pass of each device alone, and of all together
    alone: dict[str, Outcome] = field(default_factory=dict)
    together: Outcome = field(default_factory=lambda: Outcome(Timeline(())))

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
        """Three devices that share this host's cores; the last is a server in a second process."""
        first, second, third = NAMES
        batches = BATCHES[self.model.name]
        one = {"device": "cpu", "threads": 1}
        (pi,) = select(["raspberry_pi"])
        return [
            DeviceConfig("torch", first, {**one, "device": "auto", "max_batch": batches[0]}),
            DeviceConfig("torch", second, {**one, "max_batch": batches[1]}),
            replace(pi, name=third, options={**pi.options, "max_batch": batches[2]}),
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
