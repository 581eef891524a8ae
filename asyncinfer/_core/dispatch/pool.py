"""Brings waiting tasks and free devices together: the one place where tasks are assigned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.devices.roster import Entry, Roster
from asyncinfer._core.dispatch.hedging import Hedging
from asyncinfer._core.dispatch.recheck import Recheck
from asyncinfer._core.dispatch.retries import Retries
from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.lanes import Lanes
from asyncinfer._core.tasks.recorder import logger
from asyncinfer._core.tasks.spans import Span
from asyncinfer.scheduling.baselines import Greedy
from asyncinfer.scheduling.census import Census
from asyncinfer.scheduling.policy import ALL_REST, Grant, Policy

__all__ = ("Pool",)

#: most tasks reserved in one pass by all devices together: devices that answer at once would
#: otherwise keep the event loop from its turns
MOST_IN_A_PASS = 1024
#: most tasks that one device may reserve ahead
MOST_RESERVED = 128
#: and no more than are worth so many seconds of its own service time
QUANTUM = 0.001
#: passes until another one of the devices that rest is asked, and of those that run is looked at
NOW_AND_THEN = 8
#: a wait shorter than this is over, in seconds
SHORTEST_FILL = 1e-6
#: what a device is given that waits for a fuller batch
FILLING = Grant(0, 0)


class Pool:
    """Pairs the lanes' tasks with the devices that are up, as the policy says.

    ``assign`` is one pass over all that has changed since the last one, and returns what is to
    begin. It waits for nothing and starts nothing.
    """

    def __init__(
        self,
        policy: Policy,
        lanes: Lanes,
        roster: Roster,
        retries: Retries,
        hedging: Hedging | None,
        recheck: Recheck,
    ) -> None:
        self.now = 0.0
        #: whether the last pass left no device free; the next one to become free makes another
        self.full = False
        self._policy = policy
        self._lanes = lanes
        self._roster = roster
        self._retries = retries
        self._hedging = hedging
        self._recheck = recheck
        #: what is to begin after this pass
        self._bursts: list[Burst] = []
        #: tasks that devices have and have not started
        self._reserved = 0
        self._passes = 0
        #: among the devices that rest, the one to be asked next
        self._other = 0
        #: tasks for each device, if all get the same
        self._share = 0.0

    # ---- what policies see (a scheduling.PoolView)

    @property
    def devices(self) -> Sequence[Device]:
        """The devices that are up."""
        return self._roster.up

    @property
    def census(self) -> Census:
        """The devices that are up and finish when they should, counted by their latency."""
        return self._roster.census

    @property
    def waiting(self) -> int:
        """Tasks inside the windows that may be started, those reserved and not started included."""
        return self._reserved + self._lanes.waiting

    @property
    def backlog(self) -> bool:
        """Whether tasks queue behind a window."""
        return self._lanes.backlog

    def index(self, offset: int) -> int:
        """Index in its stream of the waiting task at ``offset``."""
        lane, offset = self._lanes.locate(offset)
        return lane.waiting.index(offset)

    # ---- one pass

    def assign(self, now: float) -> list[Burst]:
        """Give free devices what is to run on them; return the bursts that are to begin."""
        self.now = now
        self._passes += 1
        self._bursts = []
        self._lanes.admit()
        self._update()
        if self._hedging is not None:
            self._bursts += self._hedging.settle_and_copy(now)
            self._update()
        if self._retries.tasks:
            for device, task in self._retries.pairs(now):
                self._hand_out(device, [task], 1)
            self._update()
        rest = self._pull_all()
        self._schedule_next_pass(rest)
        return self._bursts

    def _update(self) -> None:
        changed = self._roster.update()
        if self._hedging is not None:
            for device in changed:
                self._hedging.look_soon(device, self.now)

    def _pull_all(self) -> bool:
        """Ask all free devices; tell whether one of them rests though tasks wait."""
        self._reserved = self._roster.reserved
        ready = self.waiting - self._reserved
        self._share = min(MOST_IN_A_PASS, ready) / max(1, len(self.devices))
        if self._passes % NOW_AND_THEN == 0:
            self._roster.doubt_one(self.now)
        return self._pull_fastest_first() and self.waiting > 0

    def _schedule_next_pass(self, rest: bool) -> None:
        """Have the next pass made in time though nothing else happens until then."""
        free = len(self._roster.free) > 0
        self.full = not free
        pause = math.inf
        if self._retries.tasks:
            rest = rest or (free and self._retries.blocked)
            pause = self._retries.due_in
        self._recheck.passed(rest)
        if self._hedging is not None and self.devices and self._lanes.unfinished:
            pause = min(pause, self._hedging.due_in(self.now))
        if pause < math.inf:
            self._recheck.within(pause)

    def _pull_fastest_first(self) -> bool:
        """Ask the free devices, the fastest first; tell whether one of them rests."""
        free = self._roster.free
        asked, rest = 0, False
        while asked < len(free) and self.waiting:
            grant = self._fill(free[asked][2])
            asked += 1
            rest = rest or (grant is not FILLING and not (grant and grant.take))
            if grant is ALL_REST:
                self._pull_for_others(free, asked)
                break
        self._roster.drop_busy(asked)
        return rest

    def _pull_for_others(self, free: list[Entry], asked: int) -> None:
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
                pause = _pause_to_fill(device, self._lanes, self.now)
                if pause > SHORTEST_FILL:
                    self._recheck.within(pause)
                    return FILLING
            grant = self._ask_policy(device)
            if grant is None or not grant.take:
                return grant
            spans = self._take_granted(device, grant)
            if not spans:
                return None
            self._hand_out(device, spans, grant.take)
        return grant

    def _ask_policy(self, device: Device) -> Grant | None:
        try:
            grant = self._policy.pull(device, self)
            if grant is None or isinstance(grant, Grant):
                return grant
            raise TypeError(f"pull returned {grant!r}: it must be a Grant or None")
        except Exception:  # a user's policy: without one, every stream would wait for ever
            logger.exception("the policy %r failed: going on with plain pull", self._policy)
            self._policy = Greedy()
            return self._policy.pull(device, self)

    def _take_granted(self, device: Device, grant: Grant) -> list[Span]:
        """Take what was granted, and what the device may reserve, out of the waiting tasks."""
        skip = max(0, grant.skip - self._reserved)  # reserved tasks are the first in the order
        if skip >= self.waiting - self._reserved:
            skip = grant.skip
            self._roster.reclaim()
            self._reserved = 0
            if skip >= self.waiting:  # what was reserved has ended otherwise meanwhile
                return []
        lane, offset = self._lanes.locate(skip)
        count = 1 if device.suspect else grant.take
        if self._policy.reserves and lane.one_context and not device.suspect:
            count = max(count, _reservation(device, count, self._share))
        self._lanes.took_turn(lane)
        return lane.waiting.take(count, offset)

    def _hand_out(self, device: Device, spans: list[Span], batch: int) -> None:
        burst = Burst(device, spans, min(batch, device.max_batch), self.now)
        if burst.reserved:
            self._reserved += burst.reserved
            self._roster.note_reserved(device)
        device.assign(burst, self.now)
        if self._hedging is not None:
            self._hedging.look_soon(device, self.now)
        self._bursts.append(burst)


def _reservation(device: Device, batch: int, share: float) -> int:
    """Tasks worth a quantum of the device's time, and no more than its ``share`` of what waits."""
    seconds = device.expect(batch)
    if not seconds < QUANTUM:
        return batch
    calls = min(QUANTUM / seconds, share / batch, MOST_RESERVED / batch)
    return batch * max(1, round(calls))


def _pause_to_fill(device: Device, lanes: Lanes, now: float) -> float:
    """Seconds that ``device`` should wait for a fuller batch: none if no more may come."""
    filled = [lane for lane in lanes if lane.waiting]
    if not any(_may_bring_more(lane) for lane in filled):
        return 0.0
    oldest = min((next(iter(lane.waiting)).submitted for lane in filled), default=-math.inf)
    return oldest + device.max_wait - now


def _may_bring_more(lane: Lane) -> bool:
    """Whether tasks may come into its window though none is finished."""
    draining = lane.window == math.inf
    return not (lane.source_ended or draining) and lane.admitted - lane.delivered < lane.window
