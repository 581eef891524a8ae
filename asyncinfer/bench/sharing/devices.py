"""The devices of this host that the suite runs, and what is changed of them while they are open."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from asyncinfer.bench.real.devices import Opened, supports, torch_device
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig, select

__all__ = ("Apart", "Failing", "Fault", "devices_here", "fails_from", "fails_often", "plain_torch")

#: tasks a call of those that take several
BATCH = 64
#: how many times slower the slowed one is
SLOWDOWN = 8.0
#: options of torch devices that take batches: a form that is found without trying
BATCHES = {"max_batch": BATCH, "optimize": "freeze"}

#: for a call with its number, from 0, and its tasks: which of them fail
Fault: TypeAlias = Callable[[int, int], Sequence[bool]]


class Apart(Opened):
    """An open device that is said to share nothing: all of a set really run."""

    shares: Any = frozenset()

    def __init__(self, device: Opened) -> None:
        super().__init__(device.driver)
        self._service = device._service


class Failing(Opened):
    """An open device of which some tasks fail, as those do whose model raises an error."""

    def __init__(self, device: Opened, fault: Fault) -> None:
        super().__init__(device.driver)
        self._service = device._service
        self._fault = fault
        self._calls = 0

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The driver's outputs, or errors in their place; at once if all tasks fail."""
        fails = self._fault(self._calls, len(batch))
        self._calls += 1
        if all(fails):
            raise RuntimeError(f"{self.name} is broken")
        outputs = await super().infer(batch)
        return [
            RuntimeError(f"{self.name} failed") if failed else output
            for failed, output in zip(fails, outputs, strict=True)
        ]


def fails_from(first: int) -> Fault:
    """All tasks fail from that call on."""
    return lambda call, tasks: [call >= first] * tasks


def fails_often(chance: float, seed: int) -> Fault:
    """Each task fails by chance."""
    draw = random.Random(seed)
    return lambda call, tasks: [draw.random() < chance for _ in range(tasks)]


def plain_torch(name: str) -> DeviceConfig:
    """A torch device of this host that takes batches."""
    return torch_device(name, **BATCHES)


def devices_here(context: Context) -> tuple[list[DeviceConfig], int]:
    """What was asked for, or six unlike ones of this host; and how many are a case by themselves.

    These are the first ones. In the short form there are three devices.
    """
    if context.devices or context.config.devices:
        chosen = select(context.devices, context.config)
        return chosen, len(chosen)
    found = [
        plain_torch("batching"),
        torch_device("single", max_batch=1),
        torch_device("slowed", **BATCHES, slowdown=SLOWDOWN),
    ]
    if context.short:
        return found, len(found)
    if supports("isolation"):
        found.append(torch_device("process", **BATCHES, isolation="process"))
    server = {"threads": 1, "max_batch": BATCH}
    note = "a server in a second process on this host"
    return [
        *found,
        *select(["cortex_m4"]),
        DeviceConfig("open_inference_local", "server", server, note=note),
    ], len(found)
