"""Failed tasks: run again alone, and so that no task takes the whole pool down."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import DeviceError

__all__ = ("POISON", "Retries", "strikes")

#: a task is poison once so many different devices were lost while it ran
POISON = 3
#: longest that a task one short of that waits for a second device to be up, in seconds
SUSPECT_WAIT = 5.0


class Retries:
    """Tasks that failed once and wait for a device that has not failed them.

    Those that ran when a device was lost are suspects: one of them may be what the device died of.
    Each runs as a call of its own, so that it clears itself or stands convicted, and no two on one
    device. After a loss one suspect runs at a time; each that is cleared lets one more run beside
    the others. One that has cost a device by itself, and any soon after that, runs only while
    another device is up, where there are enough of them.
    """

    def __init__(self, roster: Roster) -> None:
        self._due_in = math.inf
        self._blocked = False
        self._roster = roster
        #: those that wait
        self.tasks: deque[Span] = deque()
        #: the suspects that run, and how many of them may
        self._suspects: dict[Span, Device] = {}
        self._at_once = 1
        #: when one of them cost a device that ran nothing else
        self._guilt = -math.inf

    @property
    def due_in(self) -> float:
        """Seconds until a look is due though nothing else happens."""
        return self._due_in if self.tasks else math.inf

    @property
    def blocked(self) -> bool:
        """Whether a task waits for a device that runs another one."""
        return self._blocked and len(self.tasks) > 0

    def queue(self, task: Span) -> None:
        """Have a task run again."""
        self._suspects.pop(task, None)
        self.tasks.append(task)
        if task.causes and isinstance(task.causes[-1], DeviceError):
            self._at_once = 1
            if strikes(task) > 1:
                self._guilt = task.run.finished

    def pairs(self, now: float) -> Iterator[tuple[Device, Span]]:
        """Remove each task that a device is free for, and give both: they are to be started."""
        self._clear()
        self._due_in, self._blocked = math.inf, False
        for task in sorted(self.tasks, key=_oldest_first):
            device = None if task.done else self._device_for(task, now)
            if task.done or device is not None:
                self.tasks.remove(task)
            if device is not None:
                if strikes(task):
                    self._suspects[task] = device
                yield device, task

    def _clear(self) -> None:
        """Suspects that ended have not cost another device."""
        for task in [task for task in self._suspects if task.done]:
            del self._suspects[task]
            self._at_once += task.error is None

    def _device_for(self, task: Span, now: float) -> Device | None:
        """The fastest free device that has not failed the task; any, if all have or are stuck."""
        up, suspect = self._roster.up, strikes(task)
        if suspect:
            wait = self._must_wait(task, now)
            if wait > 0:
                self._due_in = min(self._due_in, wait)
            if wait > 0 or len(self._suspects) >= self._at_once:
                return None
        untried = [d for d in up if d.name not in task.devices and not d.stuck(now)]
        free = [device for device in untried or up if device.free]
        if suspect:
            free = [device for device in free if device not in self._suspects.values()]
        self._blocked = self._blocked or not free
        return min(free, key=_idle_and_fast_first, default=None)

    def _must_wait(self, task: Span, now: float) -> float:
        """Seconds the suspect must wait, so that it does not take the last device down."""
        roster = self._roster
        if len(roster.up) > 1 or len(roster.members) < POISON or now > self._guilt + SUSPECT_WAIT:
            return 0.0
        return task.run.finished + SUSPECT_WAIT - now


def strikes(task: Span) -> int:
    """How many different devices were lost while it ran."""
    if not task.causes:
        return 0
    met = zip(task.devices, task.causes, strict=True)
    return len({device for device, cause in met if isinstance(cause, DeviceError)})


def _idle_and_fast_first(device: Device) -> tuple[bool, float]:
    return len(device.bursts) > 0, device.quickest


def _oldest_first(task: Span) -> float:
    return task.submitted
