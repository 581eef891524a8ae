"""The devices of a dispatcher: which are there, which are up, which are free."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from typing import Any, cast

from asyncinfer._core.devices.attributes import mixed
from asyncinfer._core.devices.device import Burst, Device, put_back
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError
from asyncinfer.events import EventKind
from asyncinfer.scheduling.census import Census, Figures
from asyncinfer.stats import DeviceState

__all__ = ("Entry", "Roster")

#: the census counts a device anew once its latency has changed by this part, or its deviation by
#: this much
MOVED = 0.002

#: a free device, after what free devices are sorted by: the seconds of its shortest call, and then
#: its position
Entry = tuple[float, int, Device]


class Roster:
    """Owns the devices, knows which of them are up and free, and reports their changes of state.

    Its lists are kept up to date by what has changed, so that assigning tasks need not look at
    every device: each device tells the roster of every change, and ``update`` then brings the lists
    up to date.
    """

    def __init__(self, recorder: Recorder) -> None:
        #: the devices that take part and are up, in the order they were added
        self.up: list[Device] = []
        #: those of them that are given tasks: the others rest
        self.active: list[Device] = []
        #: the devices that are free, the fastest first and those of unknown speed last
        self.free: list[Entry] = []
        #: seconds of the shortest call of those that have changed since the watchdog's last round
        self.quickest = math.inf
        #: set while no device is up
        self.none_up = asyncio.Event()
        self.none_up.set()
        self._recorder = recorder
        #: whether the devices are stateful: all are, or none
        self.stateful = False
        #: how often a device has joined or left, or has changed what it shares
        self.comings_and_goings = 0
        self._devices: dict[str, Device] = {}
        self._positions = 0
        self._number_up = 0
        #: for each device that takes part, where it stands in the lists
        self._seats: dict[Device, _Seat] = {}
        #: the devices that have changed since the last ``update``
        self._changed: dict[Device, None] = {}
        #: whether a device came up or went down since the last ``update``
        self._came_or_went = False
        #: the devices that may have tasks they have not started
        self._reserving: dict[Device, None] = {}
        self._census = Census()
        #: the devices to count anew once the census is asked for, which few devices never need
        self._to_count: dict[Device, None] = {}
        self._last_doubted = 0

    # ---- coming and going

    def new(self, driver: Driver[Any, Any]) -> Device:
        """Make a device for ``driver``; it does not take part yet. Raises ``ConfigError``."""
        device = Device(driver, self._positions, self)
        if device.name in self._devices:
            raise ConfigError(f"there is a device {device.name!r} already: names must differ")
        if any(other.stateful is not device.stateful for other in self._devices.values()):
            raise mixed(device.name, stateful=device.stateful)
        self.stateful = device.stateful
        self._positions += 1
        self._devices[device.name] = device
        return device

    def join(self, device: Device) -> None:
        """Let a device take part."""
        self._seats[device] = _Seat()
        self.comings_and_goings += 1
        self._came_or_went = True
        self.changed(device)

    def leave(self, device: Device) -> None:
        """Let a device, which is not up any more, take part no longer."""
        self._refresh(device)
        self._uncount(device)
        self._changed.pop(device, None)
        del self._seats[device]
        self.comings_and_goings += 1
        self.up = [other for other in self.up if other is not device]
        self.active = [other for other in self.active if other is not device]

    def forget(self, device: Device) -> None:
        """Remove a device that is closed, or could not be added."""
        del self._devices[device.name]

    @property
    def devices(self) -> Collection[Device]:
        """All devices, in the order they were added, those included that are just being opened."""
        return self._devices.values()

    def named(self, name: str) -> Device | None:
        """The device of this name, if there is one."""
        return self._devices.get(name)

    @property
    def members(self) -> Collection[Device]:
        """The devices that take part: they have joined, and not left."""
        return self._seats.keys()

    @property
    def any_up(self) -> bool:
        """Whether any device takes tasks."""
        return self._number_up > 0

    @property
    def bursts(self) -> Iterator[Burst]:
        """The bursts that all devices run now."""
        for device in self._devices.values():
            yield from list(device.bursts)

    # ---- what devices tell

    def changed(self, device: Device) -> None:
        """Note that what the device runs, or how fast it is, has changed."""
        if device in self._seats:
            self._changed[device] = None

    def became(
        self, device: Device, before: DeviceState | None, error: BaseException | None
    ) -> None:
        """Note and report that the device has changed its state, by ``error`` if there is one."""
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

    def shares_anew(self, device: Device) -> None:
        """Note that the device shares something else than before."""
        self.comings_and_goings += 1

    def aside_or_not(self, device: Device) -> None:
        """Note that the device is given nothing from now on, or is given tasks again."""
        self._came_or_went = True
        self.changed(device)

    def rests_or_takes_part(self, device: Device, reason: str) -> None:
        """Report that the device rests from now on, or takes part again."""
        kind: EventKind = "device.takes_part" if device.rests is None else "device.rests"
        self._recorder.device_event(kind, device.name, reason=reason)

    # ---- taking in what has changed

    def update(self) -> Collection[Device]:
        """Bring the lists up to date; return the devices that have changed since the last time."""
        if not self._changed:
            return ()
        changed, self._changed = self._changed, {}
        for device in changed:
            self._refresh(device)
        if self._came_or_went:
            self._came_or_went = False
            self.up = [device for device in self.devices if device.up and device in self._seats]
            self.active = [device for device in self.up if not device.aside]
        return changed

    def drop_busy(self, asked: int) -> None:
        """Remove from the first ``asked`` free devices those that were given tasks.

        It is cheaper than an ``update`` for each of them, as most have been given some.
        """
        still = []
        for entry in self.free[:asked]:
            device = entry[2]
            if device.free and not device.aside:
                still.append(entry)
            else:
                self._seats[device].free = None
                if device.up:  # then nothing else has changed, and ``update`` can leave it out
                    self._changed.pop(device, None)
        self.free[:asked] = still

    def _refresh(self, device: Device) -> None:
        """Put the device where it belongs among those that are free."""
        seat = self._seats[device]
        if device.quickest < self.quickest:
            self.quickest = device.quickest
        idle = device.free and not device.aside
        free = (device.quickest, device.position, device) if idle else None
        if free != seat.free:
            if seat.free is not None:
                del self.free[bisect_left(self.free, seat.free)]
            if free is not None:
                insort(self.free, free)
            seat.free = free
        self._to_count[device] = None

    # ---- tasks they have and have not started

    def note_reserved(self, device: Device) -> None:
        """Note that the device was given more tasks than it starts at once."""
        self._reserving[device] = None

    @property
    def reserved(self) -> int:
        """How many tasks devices were given and have not started."""
        if not self._reserving:
            return 0
        counts = {device: device.reserved for device in self._reserving if device.up}
        self._reserving = {device: None for device, count in counts.items() if count}
        return sum(counts.values())

    def reclaim(self) -> None:
        """Let these tasks wait in their lanes again: another device may start them sooner."""
        for device in self.up:
            for burst in device.bursts:
                put_back(burst.take_reserved())

    # ---- the census

    @property
    def census(self) -> Census:
        """The devices that are up, of known speed, and not long overdue, counted by latency."""
        if self._to_count:
            for device in self._to_count:
                self._recount(device)
            self._to_count.clear()
        return self._census

    def _recount(self, device: Device) -> None:
        """Count the device with its present figures, if they have changed noticeably."""
        counted = self._seats[device].counted
        out = device.held or device.aside
        if not device.up or out or math.isnan(device.latency):
            self._count(device, None)
        elif counted is None or device.latency != counted[0]:
            deviation = device.deviation if device.batches else math.nan
            figures = (device.latency, device.interval, deviation)
            if counted is None or not _nearly_equal(counted, figures):
                self._count(device, figures)

    def _count(self, device: Device, figures: Figures | None) -> None:
        """Count the device with these figures; with ``None``, count it no more."""
        seat = self._seats[device]
        if seat.counted is not None:
            self._census.count(seat.counted, -1)
        if figures is not None:
            self._census.count(figures)
        seat.counted = figures

    def _uncount(self, device: Device) -> None:
        """Leave the device out of the census until it changes."""
        self._to_count.pop(device, None)
        self._count(device, None)

    def doubt_one(self, now: float) -> None:
        """Leave one device out of the census if it is long overdue; each time look at the next."""
        if self.up:
            self._last_doubted = (self._last_doubted + 1) % len(self.up)
            self._doubt(self.up[self._last_doubted], now)

    def doubt_all(self, now: float) -> None:
        """Leave all devices out of the census that are long overdue."""
        for device in self.up:
            self._doubt(device, now)

    def _doubt(self, device: Device, now: float) -> None:
        """Leave a device out of the census if it is long overdue, until it changes."""
        if device.stuck(now):
            self._uncount(device)


class _Seat:
    """Where a device that takes part stands in the roster's lists."""

    __slots__ = ("counted", "free")

    def __init__(self) -> None:
        #: its entry among the free devices; ``None`` if it is not there
        self.free: Entry | None = None
        #: the figures the census has counted it with; ``None`` if it has not
        self.counted: Figures | None = None


def _nearly_equal(before: Figures, now: Figures) -> bool:
    (latency, _, deviation), (latency_now, _, deviation_now) = before, now
    moved = abs(latency_now - latency) > MOVED * latency
    return not moved and abs(deviation_now - deviation) < MOVED  # false where one is unknown
