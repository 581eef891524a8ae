"""Failed tasks: each is run again, most of them alone, so that none of them costs every device."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.dispatch.placing import Place, idle_and_fast_first, place
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import ConfigError, DeviceError, InputError

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
    #: whether it has one attempt left, or is to show whether its input is bad
    last: bool
    #: the number of its lane: only others of that may share its call
    lane: int
    #: whether none may, since it failed in a call with others
    alone: bool
    #: whether the device was most likely to blame when the task failed
    blamed: bool
    #: the devices that are not set up for it
    refused: frozenset[str] = frozenset()


#: a task, behind what it is sorted by: when it was accepted, its index, then its turn
_Entry = tuple[float, int, int, Span]


class _Group(NamedTuple):
    """Tasks of one call that failed, to be run together once more on another device.

    They are sorted by what comes first, as single tasks are.
    """

    submitted: float
    first: int
    turn: int
    tasks: list[Span]
    doubts: tuple[Device, BaseException]


#: whether a device may run a task that failed, and none that waits and comes before it
Precedence = Callable[[Device, Span], bool]


class Retries:
    """Single tasks that have failed and are to be run again, on a device they have not failed on.

    They wait by kind, the oldest first, and are run in that order; tasks that have not failed and
    come before them go first. So a pass looks for a device once for each kind and each call that it
    starts, however many tasks wait. It is the device that is done soonest: a slow one that is free
    leaves them to a quick one that is busy, as far as that will have done them before.

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
        #: those that wait, sorted for each kind
        self._waiting: dict[_Kind, list[_Entry]] = {}
        self._turns = count()
        #: those that wait to be run together, sorted for each device that failed them
        self._groups: dict[Device, list[_Group]] = {}
        #: the suspects that run now, each with its device
        self._suspects: dict[Span, Device] = {}
        #: how many suspects may run at once
        self._at_once = 1
        #: when a suspect last cost a second device
        self._guilt = -math.inf

    @property
    def tasks(self) -> list[Span]:
        """Those that wait."""
        alone = [entry[-1] for waiting in self._waiting.values() for entry in waiting]
        groups = [group for groups in self._groups.values() for group in groups]
        together = [task for group in groups for task in group.tasks]
        return [task for task in alone + together if not task.done]

    def __bool__(self) -> bool:
        return bool(self._waiting or self._groups)

    @property
    def active(self) -> bool:
        """Whether a pass has to ask for pairs: tasks wait, or suspects are to be forgotten."""
        return bool(self) or bool(self._suspects)

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
        looks = any(isinstance(cause, InputError) for cause in task.causes)
        last = looks or task.attempts >= self._most_retries
        alone = alone or (suspect and len(task.causes) > 1)
        tried = frozenset(task.devices)
        met = zip(task.devices, task.causes, strict=True)
        refused = frozenset(device for device, cause in met if isinstance(cause, ConfigError))
        kind = _Kind(tried, suspect, last, task.lane.number, alone, blamed, refused)
        entry = (task.submitted, task.first, next(self._turns), task)
        insort(self._waiting.setdefault(kind, []), entry)

    def queue_together(self, tasks: list[Span], doubts: tuple[Device, BaseException]) -> None:
        """Have tasks that failed in one call run in one call of another device."""
        if tasks:
            first = min(tasks, key=_age)
            group = _Group(*_age(first), next(self._turns), tasks, doubts)
            insort(self._groups.setdefault(doubts[0], []), group)

    def forget_done(self) -> None:
        """Keep no task that has an outcome, or that nobody wants any more."""
        for kind, waiting in list(self._waiting.items()):
            self._put(kind, [entry for entry in waiting if not entry[-1].done])

    # ---- which of them run now

    def pairs(self, now: float, may_go: Precedence) -> Iterator[Retry]:
        """Remove the tasks that a device is free for, and yield them, to be started together.

        ``may_go`` is asked before: where it gives the device a task that comes first, it says no.
        """
        self._clear()
        self._due_in, self._blocked = math.inf, False
        self._part_groups(now)
        kinds: list[_Kind | Device] = [*self._groups, *self._waiting]
        while kinds:
            kind = min(kinds, key=self._oldest)
            retry = self._next_of(kind, now, may_go)
            if retry is not None:
                yield retry
            if retry is None or not (kind in self._waiting or kind in self._groups):
                kinds.remove(kind)

    def _oldest(self, kind: _Kind | Device) -> tuple[float, int]:
        """What the first of these is sorted by."""
        if isinstance(kind, Device):
            return self._groups[kind][0][:2]
        return self._waiting[kind][0][:2]

    def _next_of(self, kind: _Kind | Device, now: float, may_go: Precedence) -> Retry | None:
        """The next call for these, if a device is free for one."""
        if isinstance(kind, Device):
            return self._next_group(kind, now, may_go)
        return self._next(kind, now, may_go)

    def _next(self, kind: _Kind, now: float, may_go: Precedence) -> Retry | None:
        """The next call for tasks of this kind, if a device is free for one."""
        waiting = self._waiting[kind]
        while waiting and waiting[0][-1].done:
            del waiting[0]
        ripe = self._ripe(waiting, now) if kind.suspect else waiting
        shares = self._shares(kind)
        found: Place | None = None
        while ripe:
            found = self._device_for(kind, shares, len(ripe), now)
            if found is None or may_go(found.device, ripe[min(found.skip, len(ripe) - 1)][-1]):
                break
        if not ripe or found is None:
            self._put(kind, waiting)
            return None
        device = found.device
        shares = shares and not device.suspect
        tasks = _taken(waiting, ripe, found.skip, device.batch_limit if shares else 1)
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

    def _part_groups(self, now: float) -> None:
        """What failed together is run alone where no other device takes several."""
        for device in list(self._groups):
            if not self._trust.others_for_batches(device, now):
                for group in self._groups.pop(device):
                    for task in group.tasks:
                        if not task.done:
                            self.queue(task, alone=True)

    def _next_group(self, failed: Device, now: float, may_go: Precedence) -> Retry | None:
        """The next call for tasks that failed together there, if a device is free for one."""
        groups = self._groups[failed]
        group = groups[0]
        tasks = [task for task in group.tasks if not task.done]
        others = self._trust.others_for_batches(failed, now)
        found: Place | None = None
        while tasks:
            found = place(others, len(tasks), now, shares=True)
            if found is None or may_go(found.device, tasks[0]):
                break
        if tasks and found is None:
            self._blocked = True
            return None
        del groups[0]
        if not groups:
            del self._groups[failed]
        if found is None:
            return self._next_group(failed, now, may_go) if groups else None
        most = found.device.batch_limit
        self.queue_together(tasks[most:], group.doubts)
        return Retry(found.device, tasks[:most], doubts=group.doubts)

    def _clear(self) -> None:
        """Forget suspects that have ended; each without an error lets one more run at once."""
        for task in [task for task in self._suspects if task.done]:
            del self._suspects[task]
            self._at_once += task.error is None

    def _device_for(self, kind: _Kind, shares: bool, tasks: int, now: float) -> Place | None:
        """The device that has not failed the ``tasks`` and does them first, if that is free.

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
            device = min(idle, key=idle_and_fast_first, default=None)
            return Place(device, 0) if device else None
        sure = kind.last or (kind.suspect and shares)
        surest = self._trust.surest(now, kind.tried) if sure else []
        untried = surest or [d for d in up if d.name not in kind.tried and not d.stuck(now)]
        active = [device for device in untried if not device.aside]
        able = active or untried or up
        if kind.suspect:
            able = [device for device in able if device not in self._suspects.values()]
            tasks = 1
        found = place(able, tasks, now, shares=shares)
        self._blocked = self._blocked or found is None
        return found

    def _ripe(self, waiting: list[_Entry], now: float) -> list[_Entry]:
        """The suspects that need not wait for a second device to be up."""
        roster = self._roster
        if len(roster.up) > 1 or len(roster.members) < POISON or now > self._guilt + SUSPECT_WAIT:
            return waiting
        waits = [entry[-1].run.finished + SUSPECT_WAIT - now for entry in waiting]
        self._due_in = min([self._due_in, *(wait for wait in waits if wait > 0)])
        return [entry for entry, wait in zip(waiting, waits, strict=True) if wait <= 0]


def _taken(waiting: list[_Entry], ripe: list[_Entry], skip: int, most: int) -> list[Span]:
    """Remove the oldest of ``ripe`` behind ``skip`` from ``waiting``; return those not done."""
    taken = ripe[skip : skip + most]
    if ripe is waiting:
        del waiting[skip : skip + most]
    else:
        waiting[:] = [entry for entry in waiting if entry not in taken]
    return [entry[-1] for entry in taken if not entry[-1].done]


def _age(task: Span) -> tuple[float, int]:
    return task.submitted, task.first


def strikes(task: Span) -> int:
    """How many different devices were lost while the task ran."""
    if not task.causes:
        return 0
    met = zip(task.devices, task.causes, strict=True)
    return len({device for device, cause in met if isinstance(cause, DeviceError)})
