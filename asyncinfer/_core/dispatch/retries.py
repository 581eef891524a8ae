"""Failed tasks: each is run again alone, and so that none of them costs every device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import DeviceError

__all__ = ("POISON", "Retries", "strikes")

#: a task is poison once this many different devices were lost while it ran
POISON = 3
#: longest that a suspect task waits for a second device to be up, in seconds from its last failure
SUSPECT_WAIT = 5.0


class Retries:
    """Single tasks that have failed and are to be run again, on a device they have not failed on.

    A task that ran when a device was lost is a suspect: it may have caused the loss. (This is not
    the state of a suspect device.) The rules for suspects keep them from taking down all devices:

    - Each runs in a call of its own, and no two at once on one device. So the call's outcome shows
      whether the task caused the loss.
    - After a loss, one suspect runs at a time. Each that ends without an error lets one more run
      beside the others.
    - Once a suspect has cost a second device, suspects wait while only one device is up, for up to
      ``SUSPECT_WAIT`` seconds, provided that the dispatcher has at least ``POISON`` devices.
    """

    def __init__(self, roster: Roster) -> None:
        #: seconds until a suspect need not wait any longer, as of the last pass
        self._due_in = math.inf
        #: whether the last pass found no free device for some task
        self._blocked = False
        self._roster = roster
        #: those that wait
        self.tasks: deque[Span] = deque()
        #: the suspects that run now, each with its device
        self._suspects: dict[Span, Device] = {}
        #: how many suspects may run at once
        self._at_once = 1
        #: when a suspect last cost a second device
        self._guilt = -math.inf

    @property
    def due_in(self) -> float:
        """Seconds until a pass is due even if nothing else happens."""
        return self._due_in if self.tasks else math.inf

    @property
    def blocked(self) -> bool:
        """Whether a task waits for a device that is busy."""
        return self._blocked and len(self.tasks) > 0

    def queue(self, task: Span) -> None:
        """Have a task run again; its last cause may show that it is a suspect."""
        self._suspects.pop(task, None)
        self.tasks.append(task)
        if task.causes and isinstance(task.causes[-1], DeviceError):
            self._at_once = 1
            if strikes(task) > 1:
                self._guilt = task.run.finished

    def pairs(self, now: float) -> Iterator[tuple[Device, Span]]:
        """Remove each task that a device is free for, and yield both, to be started together."""
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
        """Forget suspects that have ended; each without an error lets one more run at once."""
        for task in [task for task in self._suspects if task.done]:
            del self._suspects[task]
            self._at_once += task.error is None

    def _device_for(self, task: Span, now: float) -> Device | None:
        """The fastest free device on which the task has not failed, a resting one if need be.

        If it has failed on all devices that are up and not stuck, any free device will do.
        """
        up, suspect = self._roster.up, strikes(task)
        if suspect:
            wait = self._must_wait(task, now)
            if wait > 0:
                self._due_in = min(self._due_in, wait)
            if wait > 0 or len(self._suspects) >= self._at_once:
                return None
        untried = [d for d in up if d.name not in task.devices and not d.stuck(now)]
        active = [device for device in untried if not device.aside]
        free = [device for device in active or untried or up if device.free]
        if suspect:
            free = [device for device in free if device not in self._suspects.values()]
        self._blocked = self._blocked or not free
        return min(free, key=_idle_and_fast_first, default=None)

    def _must_wait(self, task: Span, now: float) -> float:
        """Seconds that a suspect has to wait yet, so that it does not cost the last device."""
        roster = self._roster
        if len(roster.up) > 1 or len(roster.members) < POISON or now > self._guilt + SUSPECT_WAIT:
            return 0.0
        return task.run.finished + SUSPECT_WAIT - now


def strikes(task: Span) -> int:
    """How many different devices were lost while the task ran."""
    if not task.causes:
        return 0
    met = zip(task.devices, task.causes, strict=True)
    return len({device for device, cause in met if isinstance(cause, DeviceError)})


def _idle_and_fast_first(device: Device) -> tuple[bool, float]:
    return len(device.bursts) > 0, device.quickest


def _oldest_first(task: Span) -> float:
    return task.submitted
