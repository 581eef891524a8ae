"""Brings waiting tasks and free devices together: the one place where tasks are assigned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.devices.roster import Entry, Roster
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.dispatch.bindings import Bindings
from asyncinfer._core.dispatch.hedging import Hedging
from asyncinfer._core.dispatch.recheck import Recheck
from asyncinfer._core.dispatch.retries import Retries, Retry
from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.lanes import Lanes
from asyncinfer._core.tasks.recorder import logger
from asyncinfer._core.tasks.spans import Span
from asyncinfer.scheduling.baselines import Greedy
from asyncinfer.scheduling.census import Census
from asyncinfer.scheduling.policy import ALL_REST, Grant, Policy

__all__ = ("Pool",)

#: most tasks that all devices together reserve in one pass: with more, devices that answer at once
#: would keep the event loop from its other work
MOST_IN_A_PASS = 1024
#: most tasks that one device may take at once, those reserved included
MOST_RESERVED = 128
#: a device takes as many tasks at once as it runs in this time, in seconds
QUANTUM = 0.001
#: once in this many passes one of the resting devices is asked nevertheless, and the roster looks
#: whether one device is long overdue
NOW_AND_THEN = 8
#: a device does not wait for a fuller batch for less than this, in seconds
SHORTEST_FILL = 1e-6
#: the answer in place of the policy's for a device that waits for a fuller batch
FILLING = Grant(0, 0)


class Pool:
    """Gives the lanes' waiting tasks to free devices, as the policy says.

    ``assign`` makes one pass over all free devices, and returns the bursts that are to be started.
    It is synchronous and starts nothing itself. Policies see the pool as a ``scheduling.PoolView``.
    """

    def __init__(
        self,
        policy: Policy,
        lanes: Lanes,
        roster: Roster,
        retries: Retries,
        hedging: Hedging,
        recheck: Recheck,
        bindings: Bindings,
        trust: Trust,
    ) -> None:
        self.now = 0.0
        #: the devices that are up, not held back, and do not rest
        self.devices: Sequence[Device] = ()
        #: whether the last pass left no device free; a device that becomes free causes another pass
        self.full = False
        self._policy = policy
        self._lanes = lanes
        self._roster = roster
        self._retries = retries
        self._hedging = hedging
        self._recheck = recheck
        self._bindings = bindings
        self._trust = trust
        #: the bursts that this pass has made, to be started after it
        self._bursts: list[Burst] = []
        #: whether this pass has held back or let go devices
        self.others_held = False
        #: tasks that devices were given and have not started
        self._reserved = 0
        self._passes = 0
        #: which of the resting devices was asked last, counted among these
        self._other = 0
        #: whether calls of ``infer`` come before the next failed task of a stream: they take turns
        self._calls_turn = False
        #: how many of the waiting tasks each device would get if all got the same
        self._share = 0.0

    # ---- what policies see (a scheduling.PoolView)

    @property
    def census(self) -> Census:
        """The devices that are up and not long overdue, counted by their latency."""
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
        return self._lanes.index(offset)

    # ---- one pass

    def assign(self, now: float) -> list[Burst]:
        """Give tasks to free devices; return the bursts that are to be started.

        Copies of overdue tasks go first, then tasks to be retried, and then the policy is asked.
        """
        self.now = now
        self._passes += 1
        self._bursts = []
        self.others_held = False
        self._lanes.admit()
        self._update()
        self._review()  # a device that is held back no longer may run a copy of what hangs
        if self._hedging.active:
            self._bursts += self._hedging.settle_and_copy(now)
            self._update()
            self._review()  # a call that was given up may have left a healthy device free
        if self._retries.active:
            for retry in self._retries.pairs(now, self._goes_now):
                self._run_again(retry)
            self._update()
        rest = self._follow_streams() if self._roster.stateful else self._pull_all()
        self._schedule_next_pass(rest)
        bursts, self._bursts = self._bursts, []  # what they hold is not to be kept here
        return bursts

    def nothing_waits(self) -> None:
        """No pass is made, as there is nothing to give to any device."""
        self._update()
        self.full = False

    def _review(self) -> None:
        """Have it decided anew which devices are held back."""
        if self._trust.questionable:
            self.others_held |= self._trust.review(self.now)
            self._update()

    def _update(self) -> None:
        """Bring the roster's lists up to date, and tell hedging which devices have changed."""
        changed = self._roster.update()
        self.devices = self._roster.active
        if self._trust.questionable:
            self.devices = [device for device in self.devices if not device.held]
        if self._hedging.eager:
            for device in changed:
                self._hedging.look_soon(device, self.now)

    def _follow_streams(self) -> bool:
        """Give each stream's next task to the stateful device that it has to itself; none rests."""
        for device, spans, begins in self._bindings.next_tasks(self._lanes):
            self._hand_out(device, spans, 1).resets = begins
        return False

    def _pull_all(self) -> bool:
        """Let free devices pull tasks; return whether one of them rests though tasks wait."""
        self._reserved = self._roster.reserved
        ready = self.waiting - self._reserved
        self._share = min(MOST_IN_A_PASS, ready) / max(1, len(self.devices))
        if self._passes % NOW_AND_THEN == 0:
            self._roster.doubt_one(self.now)
        rest = self._pull_fastest_first()
        if self._trust.questionable:
            self._try_distrusted()
        return rest and self.waiting > 0

    def _goes_now(self, device: Device, task: Span) -> bool:
        """Whether a task that failed is the next for the device.

        If not, the device has been given waiting tasks: those of the same stream that come before
        it, or calls of ``infer`` if it is their turn.
        """
        calls = self._calls_turn and self._lanes.calls_beside(task.lane)
        self._calls_turn = not self._calls_turn
        if device.held or device.aside or not (calls or _waits_before(task)):
            return True
        self._reserved = self._roster.reserved
        grant = self._ask_policy(device)
        if not (grant and grant.take):
            return True
        if calls and not grant.skip:
            spans = self._lanes.take_calls(1 if device.suspect else grant.take)
        else:
            spans = self._take_before(task, device, grant)
        if spans:
            self._hand_out(device, spans, grant.take).trial = grant.trial
        return not spans

    def _take_before(self, task: Span, device: Device, grant: Grant) -> list[Span]:
        """Take what the policy grants the device, if that comes before ``task`` in its stream."""
        skip = max(0, grant.skip - self._reserved)
        if skip >= self._lanes.waiting or not self._lanes.comes_before(skip, task):
            return []
        return self._take_granted(device, grant)

    def _run_again(self, retry: Retry) -> None:
        """Hand out tasks that failed; with fresh ones beside them where that does no harm."""
        tasks, device = retry.tasks, retry.device
        room = 0 if device.held or device.aside else device.batch_limit - len(tasks)
        if retry.may_grow and room > 0 and self._lanes.waiting:
            tasks = [*tasks, *self._take_beside(retry, room)]
        burst = self._hand_out(device, tasks, sum(task.count for task in tasks))
        burst.doubts = retry.doubts

    def _take_beside(self, retry: Retry, room: int) -> list[Span]:
        """Take what the policy grants the device, if that is of the same stream."""
        self._reserved = self._roster.reserved
        grant = self._ask_policy(retry.device)
        skip = max(0, grant.skip - self._reserved) if grant else 0
        if not (grant and grant.take) or skip >= self._lanes.waiting:
            return []
        count = min(room, grant.take)
        return self._lanes.take(count, skip, only=retry.tasks[0].lane.number)

    def _try_distrusted(self) -> None:
        """Give one task each to devices that are held back and due for a trial."""
        others = self.devices
        for device in self._trust.on_trial(self.now):
            if not self.waiting:
                break
            self.devices = [*others, device]
            grant = self._ask_policy(device)
            spans = self._take_granted(device, grant) if grant and grant.take else []
            if spans:
                self._hand_out(device, spans, 1)
        self.devices = others

    def _schedule_next_pass(self, rest: bool) -> None:
        """See to it that the next pass is made in time even if nothing happens until then."""
        free = len(self._roster.free) > 0
        self.full = not free
        pause = math.inf
        if self._retries:
            rest = rest or (free and self._retries.blocked)
            pause = self._retries.due_in
        wanted = self._retries or self._lanes.waiting or self._hedging.hung
        if self._trust.questionable and wanted:
            rest = rest or any(device.bursts for device in self.devices)  # may fall silent
            pause = min(pause, self._trust.due_in(self.now))
        self._recheck.passed(rest)
        if self._hedging.active and self.devices and self._lanes.unfinished:
            pause = min(pause, self._hedging.due_in(self.now))
        if pause < math.inf:
            self._recheck.within(pause)

    def _pull_fastest_first(self) -> bool:
        """Let the free devices pull, the fastest first; return whether one of them rests."""
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
        """The policy lets all slower devices rest: still ask some of them.

        Every device of unknown speed is asked, as it may be fast; and now and then one of the
        others. The first ``asked`` devices were asked already.
        """
        last = len(free)
        while asked < last and free[last - 1][0] == math.inf and self.waiting:
            last -= 1
            self._fill(free[last][2])
        if asked < last and self.waiting and self._passes % NOW_AND_THEN == 0:
            self._other = (self._other + 1) % (last - asked)
            self._fill(free[asked + self._other][2])

    def _fill(self, device: Device) -> Grant | None:
        """Give ``device`` what the policy says as long as it is free; return the last answer."""
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
            self._hand_out(device, spans, grant.take).trial = grant.trial
        return grant

    def _ask_policy(self, device: Device) -> Grant | None:
        """What the policy grants ``device``. A policy that fails is replaced by plain pull."""
        try:
            grant = self._policy.pull(device, self)
            if grant is None or _is_sound(grant):
                return grant
            raise TypeError(f"pull returned {grant!r}: it must be a Grant of whole numbers or None")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # the user's own: without a policy, every stream would wait for ever
            logger.exception("the policy %r failed: going on with plain pull", self._policy)
            self._policy = Greedy()
            return self._policy.pull(device, self)

    def _take_granted(self, device: Device, grant: Grant) -> list[Span]:
        """Remove the granted tasks, and those the device may reserve, from the waiting ones."""
        skip = max(0, grant.skip - self._reserved)  # policies count reserved tasks as the first
        if skip >= self.waiting - self._reserved:
            skip = grant.skip
            self._roster.reclaim()
            self._reserved = 0
            if skip >= self.waiting:  # some of the reserved tasks were done: nobody wants them
                return []
        on_trial = device.suspect or device.held
        count = 1 if on_trial else grant.take
        if self._policy.reserves and not on_trial:
            count = max(count, _reservation(device, count, self._share))
        return self._lanes.take(count, skip)

    def _hand_out(self, device: Device, spans: list[Span], batch: int) -> Burst:
        """Make a burst of ``spans`` for ``device``, with ``batch`` tasks in each call at most."""
        burst = Burst(device, spans, min(batch, device.max_batch), self.now)
        if burst.reserved:
            self._reserved += burst.reserved
            self._roster.note_reserved(device)
        device.assign(burst, self.now)
        if self._hedging.eager:
            self._hedging.look_soon(device, self.now)
        self._bursts.append(burst)
        return burst


def _waits_before(task: Span) -> bool:
    """Whether tasks of the same stream wait that come before this one, which has failed."""
    waiting = task.lane.waiting
    return waiting.tasks > 0 and next(iter(waiting)).first < task.first


def _is_sound(grant: object) -> bool:
    """Whether a policy's answer is a grant that can be followed."""
    if not isinstance(grant, Grant):
        return False
    skip, take = grant.skip, grant.take
    return isinstance(skip, int) and isinstance(take, int) and skip >= 0 and take >= 0


def _reservation(device: Device, batch: int, share: float) -> int:
    """How many tasks to give a device at once whose calls have ``batch`` tasks.

    As many as it runs in a ``QUANTUM``, so that the cost of assigning is paid once for them; and no
    more than its ``share`` of the waiting tasks. At least one batch.
    """
    seconds = device.expect(batch)
    if not seconds < QUANTUM:
        return batch
    calls = min(QUANTUM / seconds, share / batch, MOST_RESERVED / batch)
    return batch * max(1, round(calls))


def _pause_to_fill(device: Device, lanes: Lanes, now: float) -> float:
    """Seconds that ``device`` should wait for a fuller batch: 0 if no more tasks may come."""
    filled = [lane for lane in lanes if lane.waiting]
    if not any(_may_bring_more(lane) for lane in filled):
        return 0.0
    oldest = min((next(iter(lane.waiting)).submitted for lane in filled), default=-math.inf)
    return oldest + device.max_wait - now


def _may_bring_more(lane: Lane) -> bool:
    """Whether more tasks may come into the lane's window before any of its tasks is finished."""
    draining = lane.window == math.inf
    if lane.ahead is not None and lane.ahead.left <= 0:  # nothing is read before some are started
        return False
    return not (lane.source_ended or draining) and lane.admitted - lane.delivered < lane.window
