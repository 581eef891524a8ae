"""Streams bound to devices: for models whose answers depend on what came before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer._core.tasks.lane import Lane
from asyncinfer.errors import StateLost

__all__ = ("Bindings",)


class Bindings:
    """Gives each stream one stateful device to itself, from its first task to its last.

    The device is reset before the first task. It holds what the stream's later tasks depend on, so
    these can run nowhere else: once the device is lost or removed they fail with ``StateLost``.
    """

    def __init__(self, roster: Roster, outcomes: Outcomes) -> None:
        self._roster = roster
        self._outcomes = outcomes
        self._bound: dict[Lane, _Binding] = {}

    def ready(self, lanes: Iterable[Lane]) -> Iterator[tuple[Lane, Device, bool]]:
        """Each lane with waiting tasks whose device is free, and whether it is to be reset first.

        Lanes without a device come in the order of their streams, so that none waits for ever.
        """
        for lane in [lane for lane in self._bound if lane.closed or lane.finished]:
            del self._bound[lane]
        for lane in sorted(lanes, key=_number):
            if not lane.waiting:
                continue
            binding, fresh = self._bound.get(lane), False
            if binding is None:
                device = self._unbound()
                if device is None:
                    continue
                binding, fresh = _Binding(device, device.generation), True
                self._bound[lane] = binding
            if binding.lost:
                self._fail_rest(lane, binding.device)
            elif binding.device.free:
                yield lane, binding.device, fresh

    def _unbound(self) -> Device | None:
        """The fastest free device that no stream has."""
        taken = {binding.device for binding in self._bound.values() if not binding.lost}
        free = (device for _, _, device in self._roster.free)
        return next((device for device in free if device.free and device not in taken), None)

    def _fail_rest(self, lane: Lane, device: Device) -> None:
        text = f"device {device.name!r}, which held what the stream depends on, was lost or removed"
        self._outcomes.expire(list(lane.waiting), StateLost, text)


class _Binding(NamedTuple):
    device: Device
    #: the opening of the device at which the stream began: another one remembers nothing of it
    generation: int

    @property
    def lost(self) -> bool:
        return not self.device.up or self.device.generation != self.generation


def _number(lane: Lane) -> int:
    return lane.number
