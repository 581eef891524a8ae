"""Streams bound to devices: for models whose answers depend on what came before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import DeadlineExceeded, QueueTimeout, StateLost

__all__ = ("Bindings",)


class Bindings:
    """Gives each stream one stateful device to itself, from its first task to its last.

    The device is reset before the first task. It holds what the stream's later tasks depend on, so
    these can run nowhere else: once the device is lost or removed they fail with ``StateLost``. So
    they do if an earlier task ran out of time, which the device then knows nothing of.
    """

    def __init__(self, roster: Roster, outcomes: Outcomes) -> None:
        self._roster = roster
        self._outcomes = outcomes
        self._bound: dict[Lane, _Binding] = {}

    def next_tasks(self, lanes: Iterable[Lane]) -> Iterator[tuple[Device, list[Span], bool]]:
        """The next task of each stream whose device is free, and whether that is reset before.

        Streams without a device get one in the order of their beginning, so that none waits for
        ever.
        """
        for lane in [lane for lane in self._bound if lane.closed or lane.finished]:
            del self._bound[lane]
        for lane in sorted(lanes, key=_number):
            binding = self._binding_of(lane) if lane.waiting else None
            if binding is None:
                continue
            first = next(iter(lane.waiting)).first
            binding.trouble = binding.trouble or binding.trouble_before(first)
            if binding.trouble:
                self._outcomes.expire(list(lane.waiting), StateLost, binding.trouble)
            elif binding.device.free:
                begins = binding.last is None
                (binding.last,) = spans = lane.waiting.take(1)
                yield binding.device, spans, begins

    def _binding_of(self, lane: Lane) -> _Binding | None:
        """That of the lane, made if a device is free that no other stream has."""
        if lane not in self._bound:
            taken = {each.device for each in self._bound.values() if not each.trouble}
            free = (entry[2] for entry in self._roster.free)
            device = next((each for each in free if each.free and each not in taken), None)
            if device is None:
                return None
            self._bound[lane] = _Binding(device)
        return self._bound[lane]


class _Binding:
    """One stream on its device."""

    __slots__ = ("_generation", "device", "last", "trouble")

    def __init__(self, device: Device) -> None:
        self.device = device
        #: the opening of the device at which the stream began: another one remembers nothing of it
        self._generation = device.generation
        #: the task that was handed out last
        self.last: Span | None = None
        #: why the stream cannot go on
        self.trouble = ""

    def trouble_before(self, index: int) -> str:
        """Why the task with this index cannot be the next one; empty if it can."""
        name, last = self.device.name, self.last
        if not self.device.up or self.device.generation != self._generation:
            return f"device {name!r}, which held what the stream depends on, was lost or removed"
        late = last is not None and isinstance(last.error, DeadlineExceeded | QueueTimeout)
        if late or index != (0 if last is None else last.first + 1):
            return f"an earlier task of the stream ran out of time: device {name!r} lacks it"
        return ""


def _number(lane: Lane) -> int:
    return lane.number
