"""The devices of a pool: which are up, which are free, what they do together."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection

from asyncinfer.census import Census, Figures
from asyncinfer.device import Device, nobody

__all__ = ("Entry", "Roster")

#: a device is counted anew once a figure of it is this much off
MOVED = 0.002

#: a free device with its place among them: the one with the shortest call first
Entry = tuple[float, int, Device]


class Roster:
    """Keeps its lists by what changed, so that a pass over them need not look at every device.

    A device tells of each change by ``Device.changed``; ``update`` then takes all of them in.
    """

    def __init__(self) -> None:
        self.members: list[Device] = []
        #: those that are up, by position
        self.up: list[Device] = []
        #: those that are free, the fastest first and those of unknown speed last
        self.free: list[Entry] = []
        #: those that were given more than they have started
        self.reserving: dict[Device, None] = {}
        self._seats: dict[Device, _Seat] = {}
        self._changed: dict[Device, None] = {}
        self._census = Census()
        #: those to be counted anew when somebody asks: with few devices nobody does
        self._uncounted: dict[Device, None] = {}
        self._next = 0

    @property
    def census(self) -> Census:
        """Those that are up, of known speed, and finish what they run about when they should."""
        if self._uncounted:
            for device in self._uncounted:
                self._recount(device)
            self._uncounted.clear()
        return self._census

    def join(self, device: Device) -> None:
        """Let a device take part."""
        self.members.append(device)
        self._seats[device] = _Seat()
        device.changed = self._note
        self._note(device)

    def leave(self, device: Device) -> None:
        """Let it take part no more. It is not up any longer."""
        self._refresh(device)
        self._uncount(device)
        self.members.remove(device)
        self._changed.pop(device, None)
        del self._seats[device]
        device.changed = nobody
        self.up = [member for member in self.up if member is not device]

    def _note(self, device: Device) -> None:
        self._changed[device] = None

    def update(self) -> Collection[Device]:
        """Take in what has changed since the last time; return the devices it concerns."""
        if not self._changed:
            return ()
        changed, self._changed = self._changed, {}
        states = [self._refresh(device) for device in changed]
        if any(states):
            self.up = [member for member in self.members if member.up]
        return changed

    def taken(self, asked: int) -> None:
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

    def _refresh(self, device: Device) -> bool:
        """Put the device where it belongs now; tell whether it came up or went down."""
        seat, up = self._seats[device], device.up
        free = (device.quickest, device.position, device) if device.free else None
        if free != seat.free:
            if seat.free is not None:
                del self.free[bisect_left(self.free, seat.free)]
            if free is not None:
                insort(self.free, free)
            seat.free = free
        self._uncounted[device] = None
        was_up, seat.up = seat.up, up
        return was_up is not up

    def _recount(self, device: Device) -> None:
        """Count it with the figures it has now."""
        counted = self._seats[device].counted
        if not device.up or math.isnan(device.latency):
            self._count(device, None)
        elif counted is None or device.latency != counted[0]:
            deviation = device.deviation if device.batches else math.nan
            figures = (device.latency, device.interval, deviation)
            if counted is None or not _alike(counted, figures):
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
        self._uncounted.pop(device, None)
        self._count(device, None)

    def _doubt(self, device: Device, now: float) -> None:
        """Count no more on a device that should long have finished, until it does."""
        if device.stuck(now):
            self._uncount(device)

    def doubt_one(self, now: float) -> None:
        """Look for such a device; each time at another one."""
        if self.up:
            self._next = (self._next + 1) % len(self.up)
            self._doubt(self.up[self._next], now)

    def doubt_all(self, now: float) -> None:
        """Look for such devices among all."""
        for device in self.up:
            self._doubt(device, now)

    @property
    def reserved(self) -> int:
        """Tasks that devices have and have not started."""
        if not self.reserving:
            return 0
        counts = {device: device.reserved for device in self.reserving if device.up}
        self.reserving = {device: None for device, count in counts.items() if count}
        return sum(counts.values())


class _Seat:
    """What the roster has noted of a device."""

    __slots__ = ("counted", "free", "up")

    def __init__(self) -> None:
        self.up = False
        self.free: Entry | None = None
        self.counted: Figures | None = None


def _alike(before: Figures, now: Figures) -> bool:
    (latency, _, deviation), (latency_now, _, deviation_now) = before, now
    moved = abs(latency_now - latency) > MOVED * latency
    return not moved and abs(deviation_now - deviation) < MOVED  # false where one is unknown
