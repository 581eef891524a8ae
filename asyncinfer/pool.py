"""Brings waiting tasks and free devices together: the one place where tasks are handed out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from asyncinfer.baselines import Greedy
from asyncinfer.burst import Burst, give_back
from asyncinfer.census import Census
from asyncinfer.copies import Copies
from asyncinfer.device import Device
from asyncinfer.lane import Lane
from asyncinfer.policy import ALL_REST, Grant, Policy
from asyncinfer.quarantine import Retries
from asyncinfer.recheck import Recheck
from asyncinfer.recorder import Recorder, logger
from asyncinfer.roster import Entry, Roster
from asyncinfer.span import Span
from asyncinfer.turns import locate, pause_to_fill, reservation

__all__ = ("Pool",)

#: most tasks reserved in one pass by all devices together: devices that answer at once would
#: otherwise keep the event loop from its turns
PASS = 1024
#: passes until another one of the devices that rest is asked, and of those that run is looked at
NOW_AND_THEN = 8
#: a wait shorter than this is over, in seconds
MOMENT = 1e-6
#: what a device is given that waits for a fuller batch
FILLING = Grant(0, 0)

Start = Callable[[Burst], None]


class Pool:
    """The devices that are up, the lanes with work, and the policy that pairs them.

    ``wake`` is called on every change (a task came, a device is free, the window moved); the
    pairing itself runs once per turn of the event loop, so a thousand changes cost one pass.
    """

    def __init__(
        self,
        policy: Policy,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        start: Start,
    ) -> None:
        self.roster = Roster()
        #: the one served last comes last: no index into it would survive that one leaves
        self.lanes: list[Lane] = []
        #: failed tasks, to be run alone, on a device that has not failed them if there is one
        self.retries = Retries(self.roster)
        #: makes copies of overdue tasks, if it is asked to
        self.copies: Copies | None = None
        #: called after each pass
        self.handed_out: Callable[[], None] = nothing
        self.now = 0.0
        self._policy = policy
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._start = start
        self._reserved = 0
        #: whether the last pass left no device free; the next one to become free makes another
        self._full = False
        self._passes = 0
        #: among the devices that rest, the one to be asked next
        self._other = 0
        #: tasks for each device, if all get the same
        self._share = 0.0
        self._up: list[Device] = []
        self._wakeup: asyncio.Handle | None = None
        self._recheck = Recheck(self.roster, loop, clock, self.wake)
        self._quiet: asyncio.Event | None = None

    # ---- what policies see (a scheduling.PoolView)

    @property
    def devices(self) -> Sequence[Device]:
        """The devices that are up."""
        return self._up

    @property
    def census(self) -> Census:
        """The devices that are up and finish when they should, counted by their latency."""
        return self.roster.census

    @property
    def waiting(self) -> int:
        """Tasks inside the windows that may be started, those reserved and not started included."""
        waiting = self._reserved
        for lane in self.lanes:
            waiting += lane.waiting.tasks
        return waiting

    @property
    def backlog(self) -> bool:
        """Whether tasks queue behind a window."""
        return any(lane.intake.tasks for lane in self.lanes)

    def index(self, offset: int) -> int:
        """Index in its stream of the waiting task at ``offset``."""
        lane, offset = locate(self.lanes, offset)
        return lane.waiting.index(offset)

    # ---- pairing

    def wake(self) -> None:
        """Pair tasks with devices in the next turn of the event loop."""
        if self._wakeup is None:
            self._wakeup = self._loop.call_soon(self._pair)

    def more(self, lane: Lane) -> None:
        """Tasks came, or the window moved: no reason to pair anew while no device is free."""
        if not self._full:
            self.wake()
        elif lane.intake.full():
            lane.admit()  # so that its source can go on

    async def quiet(self) -> None:
        """Wait until every accepted task has ended."""
        while self._recorder.unfinished:
            if self._quiet is None:
                self._quiet = asyncio.Event()
            await self._quiet.wait()

    def stop(self) -> None:
        """Pair no more."""
        self._recheck.cancel()
        if self.copies is not None:
            self.copies.close(self._clock())
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup = None

    def _pair(self) -> None:
        self._wakeup = None
        self.now = self._clock()
        for lane in self.lanes:
            lane.admit()
        self._update()
        if self.copies is not None:
            self.copies.serve(self.now)
            self._update()
        if self.retries:
            for device, task in self.retries.pairs(self.now):
                self._hand_out(device, [task], 1)
            self._update()
        self._reserved = self.roster.reserved
        self._share = min(PASS, self.waiting - self._reserved) / max(1, len(self._up))
        self._passes += 1
        if self._passes % NOW_AND_THEN == 0:
            self.roster.doubt_one(self.now)
        rest = self._serve() and self.waiting > 0
        free = len(self.roster.free) > 0
        self._full = not free
        self._recheck.passed(rest or (free and self.retries.blocked))
        pause = self.retries.pause
        if self.copies is not None and self._up and self._recorder.unfinished:
            pause = min(pause, self.copies.pause(self.now))
        if pause < math.inf:
            self._recheck.within(pause)
        self.handed_out()
        if self._quiet is not None and not self._recorder.unfinished:
            self._quiet.set()
            self._quiet = None

    def _update(self) -> None:
        changed = self.roster.update()
        self._up = self.roster.up
        if self.copies is not None:
            for device in changed:
                self.copies.note(device, self.now)

    def _serve(self) -> bool:
        """Ask the free devices, the fastest first; tell whether one of them rests."""
        free = self.roster.free
        asked, rest = 0, False
        while asked < len(free) and self.waiting:
            grant = self._fill(free[asked][2])
            asked += 1
            rest = rest or (grant is not FILLING and not (grant and grant.take))
            if grant is ALL_REST:
                self._serve_others(free, asked)
                break
        self.roster.taken(asked)
        return rest

    def _serve_others(self, free: list[Entry], asked: int) -> None:
        """All rest from a certain speed on: ask those of unknown speed, and one more at times."""
        last = len(free)
        while asked < last and free[last - 1][0] == math.inf and self.waiting:
            last -= 1
            self._fill(free[last][2])
        if asked < last and self.waiting and self._passes % NOW_AND_THEN == 0:
            self._other = (self._other + 1) % (last - asked)
            self._fill(free[asked + self._other][2])

    def _fill(self, device: Device) -> Grant | None:
        """Give ``device`` what its policy says, while it is free; return the last answer."""
        grant: Grant | None = None
        while device.free and self.waiting:
            if device.max_wait and self.waiting < device.batch_limit:
                pause = pause_to_fill(device, self.lanes, self.now)
                if pause > MOMENT:
                    self._recheck.within(pause)
                    return FILLING
            grant = self._ask(device)
            if grant is None or not grant.take:
                return grant
            spans = self._take(device, grant)
            if not spans:
                return None
            self._hand_out(device, spans, grant.take)
        return grant

    def _ask(self, device: Device) -> Grant | None:
        try:
            return self._policy.pull(device, self)
        except Exception:  # a user's policy: without one, every stream would wait for ever
            logger.exception("the policy %r failed: going on with plain pull", self._policy)
            self._policy = Greedy()
            return self._policy.pull(device, self)

    def _take(self, device: Device, grant: Grant) -> list[Span]:
        skip = max(0, grant.skip - self._reserved)  # reserved tasks are the first in the order
        if skip >= self.waiting - self._reserved:
            skip = grant.skip
            self.reclaim()
            if skip >= self.waiting:  # what was reserved has ended otherwise meanwhile
                return []
        lane, offset = locate(self.lanes, skip)
        count = grant.take if device.trusted else 1
        if self._policy.reserves and lane.one_context and device.trusted:
            count = max(count, reservation(device, count, self._share))
        if self.lanes[-1] is not lane:
            self.lanes.remove(lane)
            self.lanes.append(lane)
        return lane.waiting.take(count, offset)

    def _hand_out(self, device: Device, spans: list[Span], batch: int) -> None:
        burst = Burst(device, spans, min(batch, device.max_batch), self.now)
        if burst.reserved:
            self._reserved += burst.reserved
            self.roster.reserving[device] = None
        device.begin(burst, self.now)
        if self.copies is not None:
            self.copies.note(device, self.now)
        self._start(burst)

    def reclaim(self) -> None:
        """Take back what is reserved and not started, because another device would rest."""
        for device in self._up:
            for burst in device.bursts:
                give_back(burst.take_reserved())
        self._reserved = 0


def nothing() -> None:
    """Stand in where nobody needs to know."""
