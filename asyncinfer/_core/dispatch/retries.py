"""Failed tasks: each is run again, most of them alone, so that none of them costs every device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import ConfigError, DeviceError

__all__ = ("POISON", "Retries", "Retry", "strikes")

#: a task is poison once this many different devices were lost while it ran
POISON = 3
#: longest that a suspect task waits for a second device to be up, in seconds from its last failure
SUSPECT_WAIT = 5.0


class Retry(NamedTuple):
    """Tasks of one lane that a free device is to run again, in one call."""

    device: Device
    tasks: list[Span]
    #: whether what failed was the devices' fault, so that other tasks may share the call
    may_grow: bool = False
    #: where they failed together, and how, if nobody knows whose fault that was
    doubts: tuple[Device, BaseException] | None = None


class _Kind(NamedTuple):
    """What decides where a task may be run again: tasks that agree in it wait together."""

    #: the devices it has failed on
    tried: frozenset[str]
    #: whether it may have cost a device
    suspect: bool
    #: whether it has one attempt left
    last: bool
    #: the number of its lane: only others of that may share its call
    lane: int
    #: whether none may, since it failed in a call with others
    alone: bool
    #: whether the device was most likely to blame when the task failed
    blamed: bool
    #: the devices that are not set up for it
    refused: frozenset[str] = frozenset()


#: a task, behind what it is sorted by: when it was accepted, then its turn
_Entry = tuple[float, int, Span]


class _Group(NamedTuple):
    """Tasks of one call that failed, to be run together once more on another device."""

    tasks: list[Span]
    doubts: tuple[Device, BaseException]


class Retries:
    """Single tasks that have failed and are to be run again, on a device they have not failed on.

    They wait by kind, the oldest first. So a pass looks for a device once for each kind and each
    call that it starts, however many tasks wait.

    A task that ran when a device was lost is a suspect: it may have caused the loss. (This is not
    the state of a suspect device.) The rules for suspects keep them from taking down all devices:

    - Each runs in a call of its own, and no two at once on one device. So the call's outcome shows
      whether the task caused the loss.
    - After a loss, one suspect runs at a time. Each that ends without an error lets one more run
      beside the others.
    - Once a suspect has cost a second device, suspects wait while only one device is up, for up to
      ``SUSPECT_WAIT`` seconds, provided that the dispatcher has at least ``POISON`` devices.
    """

    def __init__(self, roster: Roster, trust: Trust, most_retries: int) -> None:
        #: seconds until a suspect need not wait any longer, as of the last pass
        self._due_in = math.inf
        #: whether the last pass found no free device for some task
        self._blocked = False
        self._roster = roster
        self._trust = trust
        self._most_retries = most_retries
        #: those that wait, as a heap for each kind
        self._waiting: dict[_Kind, list[_Entry]] = {}
        self._turns = count()
        #: those that wait to be run together
        self._groups: deque[_Group] = deque()
        #: the suspects that run now, each with its device
        self._suspects: dict[Span, Device] = {}
        #: how many suspects may run at once
        self._at_once = 1
        #: when a suspect last cost a second device
        self._guilt = -math.inf

    @property
    def tasks(self) -> list[Span]:
        """Those that wait."""
        alone = [task for waiting in self._waiting.values() for _, _, task in waiting]
        together = [task for group in self._groups for task in group.tasks]
        return [task for task in alone + together if not task.done]

    def __bool__(self) -> bool:
        return bool(self._waiting or self._groups)

    @property
    def due_in(self) -> float:
        """Seconds until a pass is due even if nothing else happens."""
        return self._due_in if self else math.inf

    @property
    def blocked(self) -> bool:
        """Whether a task waits for a device that is busy."""
        return self._blocked and bool(self)

    def queue(self, task: Span, *, alone: bool = False, blamed: bool = False) -> None:
        """Have a task run again; its last cause may show that it is a suspect.

        ``blamed`` says that its device was most likely to blame, as it was not in standing, and
        ``alone`` that the task failed together with others, and has to be run by itself.
        """
        self._suspects.pop(task, None)
        if task.causes and isinstance(task.causes[-1], DeviceError):
            self._at_once = 1
            if strikes(task) > 1:
                self._guilt = task.run.finished
        suspect = strikes(task) > 0
        last = task.attempts >= self._most_retries
        alone = alone or (suspect and len(task.causes) > 1)
        tried = frozenset(task.devices)
        met = zip(task.devices, task.causes, strict=True)
        refused = frozenset(device for device, cause in met if isinstance(cause, ConfigError))
        kind = _Kind(tried, suspect, last, task.lane.number, alone, blamed, refused)
        heappush(self._waiting.setdefault(kind, []), (task.submitted, next(self._turns), task))

    def queue_together(self, tasks: list[Span], doubts: tuple[Device, BaseException]) -> None:
        """Have tasks that failed in one call run in one call of another device."""
        self._groups.append(_Group(tasks, doubts))

    def forget_done(self) -> None:
        """Keep no task that has an outcome, or that nobody wants any more."""
        for kind, waiting in list(self._waiting.items()):
            left = [entry for entry in waiting if not entry[2].done]  # it is a heap still
            if len(left) < len(waiting):
                self._put(kind, sorted(left))

    # ---- which of them run now

    def pairs(self, now: float) -> Iterator[Retry]:
        """Remove the tasks that a device is free for, and yield them, to be started together."""
        self._clear()
        self._due_in, self._blocked = math.inf, False
        yield from self._together(now)
        kinds = dict.fromkeys(self._waiting)
        while kinds:
            kind = min(kinds, key=lambda kind: self._waiting[kind][0])
            retry = self._next(kind, now)
            if retry is not None:
                yield retry
            if retry is None or kind not in self._waiting:
                del kinds[kind]

    def _next(self, kind: _Kind, now: float) -> Retry | None:
        """The next call for tasks of this kind, if a device is free for one."""
        waiting = self._waiting[kind]
        while waiting and waiting[0][2].done:
            heappop(waiting)
        ripe = self._ripe(waiting, now) if kind.suspect else waiting
        shares = self._shares(kind)
        device = self._device_for(kind, shares, now) if ripe else None
        if device is None:
            self._put(kind, waiting)
            return None
        shares = shares and not device.suspect
        tasks = _taken(waiting, ripe, device.batch_limit if shares else 1)
        self._put(kind, waiting)
        if kind.suspect:
            self._suspects.update(dict.fromkeys(tasks, device))
        grows = shares and (not kind.suspect or self._trust.distrusts(kind.tried))
        return Retry(device, tasks, may_grow=grows)

    def _shares(self, kind: _Kind) -> bool:
        """Whether tasks of this kind are run together, as they most likely are in order.

        Suspects are, once, and in their last attempt only if that is nearly certain.
        """
        if kind.alone or not kind.tried or (kind.suspect and kind.last):
            return not kind.alone and kind.suspect and self._trust.distrusts(kind.tried)
        return kind.blamed or self._trust.proven(kind.tried)

    def _put(self, kind: _Kind, waiting: list[_Entry]) -> None:
        """Let these wait, and no others of their kind."""
        if waiting:
            self._waiting[kind] = waiting
        else:
            self._waiting.pop(kind, None)

    def _together(self, now: float) -> Iterator[Retry]:
        """The calls for tasks that failed together; alone if no other device takes several."""
        for _ in range(len(self._groups)):
            group = self._groups.popleft()
            tasks = [task for task in group.tasks if not task.done]
            others = self._trust.others_for_batches(group.doubts[0], now)
            free = [device for device in others if device.free]
            while tasks and free:
                device = min(free, key=_idle_and_fast_first)
                yield Retry(device, tasks[: device.batch_limit], doubts=group.doubts)
                del tasks[: device.batch_limit]
                free = [device for device in free if device.free]
            if not others:
                for task in tasks:
                    self.queue(task, alone=True)
            elif tasks:
                self._blocked = True
                self._groups.append(_Group(tasks, group.doubts))

    def _clear(self) -> None:
        """Forget suspects that have ended; each without an error lets one more run at once."""
        for task in [task for task in self._suspects if task.done]:
            del self._suspects[task]
            self._at_once += task.error is None

    def _device_for(self, kind: _Kind, shares: bool, now: float) -> Device | None:
        """The fastest free device on which the tasks have not failed, a resting one if need be.

        If they have failed on all devices that are up and not stuck, any free device will do. For a
        last attempt the surest of the healthy devices is waited for that has not failed them.
        """
        if kind.suspect and len(self._suspects) >= self._at_once:
            return None
        able = [device for device in self._roster.up if device.name not in kind.refused]
        able = able or self._roster.up
        up = [device for device in able if not device.held]
        if kind.refused and not up:  # what is held back may be set up as the task needs it
            idle = [device for device in able if not device.bursts]
            return min(idle, key=_idle_and_fast_first, default=None)
        sure = kind.last or (kind.suspect and shares)
        surest = self._trust.surest(now, kind.tried) if sure else []
        untried = surest or [d for d in up if d.name not in kind.tried and not d.stuck(now)]
        active = [device for device in untried if not device.aside]
        free = [device for device in active or untried or up if device.free]
        if kind.suspect:
            free = [device for device in free if device not in self._suspects.values()]
        self._blocked = self._blocked or not free
        return min(free, key=_idle_and_fast_first, default=None)

    def _ripe(self, waiting: list[_Entry], now: float) -> list[_Entry]:
        """The suspects that need not wait for a second device to be up."""
        roster = self._roster
        if len(roster.up) > 1 or len(roster.members) < POISON or now > self._guilt + SUSPECT_WAIT:
            return waiting
        waits = [(task.run.finished + SUSPECT_WAIT - now, task) for _, _, task in waiting]
        self._due_in = min([self._due_in, *(wait for wait, _ in waits if wait > 0)])
        return [entry for entry, (wait, _) in zip(waiting, waits, strict=True) if wait <= 0]


def _taken(waiting: list[_Entry], ripe: list[_Entry], most: int) -> list[Span]:
    """Remove the oldest of ``ripe`` from the heap ``waiting``; return those not done."""
    if ripe is waiting:
        taken = [heappop(waiting) for _ in range(min(most, len(waiting)))]
    else:
        taken = sorted(ripe)[:most]
        waiting[:] = sorted(entry for entry in waiting if entry not in taken)
    return [task for _, _, task in taken if not task.done]


def strikes(task: Span) -> int:
    """How many different devices were lost while the task ran."""
    if not task.causes:
        return 0
    met = zip(task.devices, task.causes, strict=True)
    return len({device for device, cause in met if isinstance(cause, DeviceError)})


def _idle_and_fast_first(device: Device) -> tuple[bool, float]:
    return len(device.bursts) > 0, device.quickest
