"""The devices of a dispatcher: which are there, which are up, which are free."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from typing import Any, cast

from asyncinfer._core.devices.device import Burst, Device, put_back
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError
from asyncinfer.events import EventKind
from asyncinfer.scheduling.census import Census, Figures
from asyncinfer.stats import DeviceState

__all__ = ("Entry", "Roster")

#: a device is counted anew once a figure of it is this much off
MOVED = 0.002

#: a free device with its place among them: the one with the shortest call first
Entry = tuple[float, int, Device]


class Roster:
    """Owns the devices, and tells of every change of their states.

    It keeps its lists by what changed, so that a pass over them need not look at every device:
    each device tells it of every change, and ``update`` then takes all of them in.
    """

    def __init__(self, recorder: Recorder) -> None:
        #: those that take part and are up, in the order they were added
        self.up: list[Device] = []
        #: those that are free, the fastest first and those of unknown speed last
        self.free: list[Entry] = []
        #: set while no device is up
        self.none_up = asyncio.Event()
        self.none_up.set()
        self._recorder = recorder
        self._devices: dict[str, Device] = {}
        self._positions = 0
        self._number_up = 0
        self._seats: dict[Device, _Seat] = {}
        self._changed: dict[Device, None] = {}
        #: whether ``up`` is to be made anew
        self._came_or_went = False
        #: those that were given more than they have started
        self._reserving: dict[Device, None] = {}
        self._census = Census()
        #: those to be counted anew when somebody asks: with few devices nobody does
        self._to_count: dict[Device, None] = {}
        self._last_doubted = 0

    # ---- coming and going

    def new(self, driver: Driver[Any, Any]) -> Device:
        """A device for this driver, which takes no part yet. Raises ``ConfigError``."""
        device = Device(driver, self._positions, self)
        if device.name in self._devices:
            raise ConfigError(f"there is a device {device.name!r} already: names must differ")
        self._positions += 1
        self._devices[device.name] = device
        return device

    def join(self, device: Device) -> None:
        """Let a device take part."""
        self._seats[device] = _Seat()
        self._came_or_went = True
        self.changed(device)

    def leave(self, device: Device) -> None:
        """Let it take part no more. It is not up any longer."""
        self._refresh(device)
        self._uncount(device)
        self._changed.pop(device, None)
        del self._seats[device]
        self.up = [other for other in self.up if other is not device]

    def forget(self, device: Device) -> None:
        """It is closed, or was never opened: there is no such device."""
        del self._devices[device.name]

    @property
    def devices(self) -> Collection[Device]:
        """All there are, in the order they were added: also one that is just being opened."""
        return self._devices.values()

    @property
    def members(self) -> Collection[Device]:
        """Those that take part."""
        return self._seats.keys()

    @property
    def any_up(self) -> bool:
        """Whether any device takes tasks."""
        return self._number_up > 0

    @property
    def bursts(self) -> Iterator[Burst]:
        """What they run now."""
        for device in self._devices.values():
            yield from list(device.bursts)

    # ---- what devices tell

    def changed(self, device: Device) -> None:
        """What it runs, or how fast it is, has changed."""
        if device in self._seats:
            self._changed[device] = None

    def became(
        self, device: Device, before: DeviceState | None, error: BaseException | None
    ) -> None:
        """It has changed its state."""
        was_up = before is not None and before.up
        if device.up is not was_up:
            self._came_or_went = True
            self._number_up += 1 if device.up else -1
            self.none_up.clear() if self.any_up else self.none_up.set()
        self.changed(device)
        state = DeviceState.READY if device.state is DeviceState.BUSY else device.state
        kind = cast("EventKind", f"device.{state}")
        facts = {"before": before or "", "reason": device.reason}
        self._recorder.device_event(kind, device.name, error, **facts)

    # ---- taking in what has changed

    def update(self) -> Collection[Device]:
        """Take in what has changed since the last time; return the devices it concerns."""
        if not self._changed:
            return ()
        changed, self._changed = self._changed, {}
        for device in changed:
            self._refresh(device)
        if self._came_or_went:
            self._came_or_went = False
            self.up = [device for device in self.devices if device.up and device in self._seats]
        return changed

    def drop_busy(self, asked: int) -> None:
        """The first ``asked`` free devices were asked, and most of them given something."""
        still = []
        for entry in self.free[:asked]:
            device = entry[2]
            if device.free:
                still.append(entry)
            else:
                self._seats[device].free = None
                if device.up:  # that is all that has changed
                    self._changed.pop(device, None)
        self.free[:asked] = still

    def _refresh(self, device: Device) -> None:
        """Put the device where it belongs among those that are free."""
        seat = self._seats[device]
        free = (device.quickest, device.position, device) if device.free else None
        if free != seat.free:
            if seat.free is not None:
                del self.free[bisect_left(self.free, seat.free)]
            if free is not None:
                insort(self.free, free)
            seat.free = free
        self._to_count[device] = None

    # ---- tasks they have and have not started

    def note_reserved(self, device: Device) -> None:
        """It was given more than it starts at once."""
        self._reserving[device] = None

    @property
    def reserved(self) -> int:
        """Tasks that devices have and have not started."""
        if not self._reserving:
            return 0
        counts = {device: device.reserved for device in self._reserving if device.up}
        self._reserving = {device: None for device, count in counts.items() if count}
        return sum(counts.values())

    def reclaim(self) -> None:
        """Have those tasks wait again: another device may start them sooner."""
        for device in self.up:
            for burst in device.bursts:
                put_back(burst.take_reserved())

    # ---- the census

    @property
    def census(self) -> Census:
        """Those that are up, of known speed, and finish what they run about when they should."""
        if self._to_count:
            for device in self._to_count:
                self._recount(device)
            self._to_count.clear()
        return self._census

    def _recount(self, device: Device) -> None:
        """Count it with the figures it has now."""
        counted = self._seats[device].counted
        if not device.up or math.isnan(device.latency):
            self._count(device, None)
        elif counted is None or device.latency != counted[0]:
            deviation = device.deviation if device.batches else math.nan
            figures = (device.latency, device.interval, deviation)
            if counted is None or not _nearly_equal(counted, figures):
                self._count(device, figures)

    def _count(self, device: Device, figures: Figures | None) -> None:
        """Count it with these, or no more."""
        seat = self._seats[device]
        if seat.counted is not None:
            self._census.count(seat.counted, -1)
        if figures is not None:
            self._census.count(figures)
        seat.counted = figures

    def _uncount(self, device: Device) -> None:
        """Count it no more, whatever was noted of it, until it changes."""
        self._to_count.pop(device, None)
        self._count(device, None)

    def doubt_one(self, now: float) -> None:
        """Look for a device that should long have finished; each time at another one."""
        if self.up:
            self._last_doubted = (self._last_doubted + 1) % len(self.up)
            self._doubt(self.up[self._last_doubted], now)

    def doubt_all(self, now: float) -> None:
        """Look for such devices among all."""
        for device in self.up:
            self._doubt(device, now)

    def _doubt(self, device: Device, now: float) -> None:
        """Count no more on a device that should long have finished, until it does."""
        if device.stuck(now):
            self._uncount(device)


class _Seat:
    """What the roster has noted of a device that takes part."""

    __slots__ = ("counted", "free")

    def __init__(self) -> None:
        self.free: Entry | None = None
        self.counted: Figures | None = None


def _nearly_equal(before: Figures, now: Figures) -> bool:
    (latency, _, deviation), (latency_now, _, deviation_now) = before, now
    moved = abs(latency_now - latency) > MOVED * latency
    return not moved and abs(deviation_now - deviation) < MOVED  # false where one is unknown
