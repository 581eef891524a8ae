"""Copies of overdue tasks: the first result counts. Hedging asks for many, a hung call for one."""

from __future__ import annotations

import math
from collections import Counter

from asyncinfer._core.devices.device import GRACE, OVERDUE, Burst, Device, put_back
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer._core.dispatch.retries import POISON
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer._core.tasks.spans import Span
from asyncinfer.options import Hedge
from asyncinfer.stats import HedgeStats, percentile

__all__ = ("Hedging",)

#: how many calls of each device the quantile of ``Hedge`` is taken over
RATIOS_KEPT = 128
#: shortest pause between two searches for overdue calls, in seconds
SEARCH_PAUSE = 0.001
#: with more devices than this the pause grows in proportion, as a search looks at every device
SEARCH_DEVICES = 64
#: two moments closer than this are the same, in seconds
SAME_MOMENT = 1e-9


class Hedging:
    """Finds overdue tasks, starts copies of them on other devices, and settles each pair.

    A copy is the very same spans in a second burst on another device. The call that ends first
    finishes the spans. The other call finds them done and is cancelled, like every call whose tasks
    nobody wants any more.

    With ``hedge``, calls are overdue as that says. Without it, only those are copied that the
    watchdog shows to ``rescue``: they are long overdue, and seem to hang. For these there is no
    budget. Such a call is not cancelled while its device answers nothing at all: it would be given
    another task, and hold up that one too.
    """

    def __init__(
        self, hedge: Hedge | None, roster: Roster, recorder: Recorder, outcomes: Outcomes
    ) -> None:
        #: whether calls are copied before they seem to hang
        self.eager = hedge is not None
        #: whether a pass has to ask for copies
        self.active = self.eager
        self._hedge = hedge or Hedge()
        #: the calls that seem to hang: bursts, and when the call began
        self._hung: dict[Burst, float] = {}
        #: when one of these is to be considered again
        self._next_rescue = math.inf
        self._roster = roster
        self._recorder = recorder
        self._outcomes = outcomes
        self._copies: list[_Copy] = []
        #: the bursts of copies that were made in the present pass, and are to be started
        self._new: list[Burst] = []
        self._started = self._won = self._lost = self._cancelled = 0
        #: busy seconds of the copies that have ended
        self._seconds = 0.0
        #: when the next search is due
        self._next_look = 0.0
        #: whether the next pass is to search even if that is before ``_next_look``
        self._at_next_event = False
        #: the earliest that ``look_soon`` may move the next search to
        self._earliest = 0.0

    @property
    def hung(self) -> bool:
        """Whether a call seems to hang: devices that may not run a copy now may be needed."""
        return len(self._hung) > 0

    def stats(self, now: float) -> HedgeStats:
        """What has become of the copies so far."""
        seconds = self._seconds + sum(now - copy.burst.began for copy in self._copies)
        return HedgeStats(self._started, self._won, self._lost, self._cancelled, seconds)

    def due_in(self, now: float) -> float:
        """Seconds until the next search is due; infinite if time alone does not make it so."""
        due = min(self._next_rescue, self._next_look if self.eager else math.inf)
        return max(SEARCH_PAUSE, due - now)

    def look_soon(self, device: Device, now: float) -> None:
        """A call of ``device`` begins or has ended: search again before a call can be overdue."""
        self._next_look = min(self._next_look, max(now + device.quickest, self._earliest))

    def settle_and_copy(self, now: float) -> list[Burst]:
        """Settle the pairs that have ended; return new copies, to be started before other tasks."""
        self._new = []
        if self._copies:
            self._copies = [copy for copy in self._copies if self._goes_on(copy, now)]
        self._hung = {burst: at for burst, at in self._hung.items() if _hangs(burst, at)}
        pauses = [self._help(burst, now) for burst in self._hung]
        self._next_rescue = now + min(pauses, default=math.inf)
        if self.eager and (self._at_next_event or now >= self._next_look - SAME_MOMENT):
            self._search(now)
        self.active = self.eager or self.hung or len(self._copies) > 0
        return self._new

    def rescue(self, burst: Burst) -> None:
        """The present call of ``burst`` seems to hang: copy it as soon as somebody waits for it.

        If copies have answered for it already, it is cancelled.
        """
        if burst.abandoned:
            self._outcomes.give_up(burst)
        else:
            self._hung[burst] = burst.call_began
            self.active = True

    def close(self, now: float) -> None:
        """Settle all pairs that are left, as all devices are closed."""
        for copy in self._copies:
            if not copy.settled:
                self._tally(copy)
            self._seconds += now - copy.burst.began
        self._copies.clear()

    # ---- what hangs

    def _help(self, burst: Burst, now: float) -> float:
        """Copy what a call that hangs should have answered, if somebody waits for it.

        Returns in how many seconds to look again: infinite if time alone changes nothing.
        """
        self._outcomes.pass_on(burst, burst.began)
        put_back(burst.take_reserved())
        if not self._in_demand(burst):
            return GRACE  # results that come between the calls of a burst cause no pass
        late, times = now - burst.call_began - burst.expected, 1.0
        if math.isnan(late):  # its own speed is unknown: that of the device for the copy has to do
            late, times = (now - burst.call_began - GRACE) / OVERDUE, OVERDUE
        while True:  # until no device is free for the rest of its tasks
            made = len(self._new)
            pause = self._copy(burst, late, now, hangs=True)
            if made == len(self._new):
                return times * pause

    # ---- what is overdue

    def _search(self, now: float) -> None:
        """Look for overdue calls on all devices, copy them, and note when to search again."""
        self._at_next_event = False
        self._earliest = now + SEARCH_PAUSE * max(1.0, len(self._roster.up) / SEARCH_DEVICES)
        pause = math.inf
        for device in self._roster.members:
            device.estimator.keep_ratios(RATIOS_KEPT)
            for burst in device.bursts:
                pause = min(pause, self._consider(burst, now))
        self._next_look = now + pause

    def _consider(self, burst: Burst, now: float) -> float:
        """Copy the call if it is overdue and may be copied.

        Returns in how many seconds to look again: infinite if time alone changes nothing.
        """
        expected = burst.device.expect(burst.running)
        if not burst.live or burst.abandoned or math.isnan(expected) or not burst.device.repeatable:
            return math.inf
        late = now - burst.call_began - expected
        if late < self._hedge.least - SAME_MOMENT:
            return self._hedge.least - late
        usual = self._usual(burst.device) * expected - expected
        if late < usual - SAME_MOMENT:
            return usual - late
        self._outcomes.pass_on(burst, burst.began)
        put_back(burst.take_reserved())
        if not self._in_demand(burst):
            return self._look_at_next_event()
        return self._copy(burst, late, now)

    def _usual(self, device: Device) -> float:
        """The stated quantile of what its calls took, as a multiple of what was expected."""
        return max(1.0, percentile(device.estimator.ratios or (), self._hedge.quantile))

    def _in_demand(self, burst: Burst) -> bool:
        """Whether the consumer waits for this call: in an ordered stream, for the head only."""
        first = next((span.first for span in burst.spans if not span.done), None)
        return first is not None and (not burst.lane.ordered or first == burst.lane.head)

    def _look_at_next_event(self) -> float:
        """Search again as soon as anything happens; return that time alone changes nothing."""
        self._at_next_event = True
        return math.inf

    # ---- copies

    def _copy(self, burst: Burst, late: float, now: float, *, hangs: bool = False) -> float:
        """Start a copy where that ends before the call is expected to.

        A call that is ``late`` by some seconds is expected to take as long again, since nothing
        else is known about a call that has outlived its estimate. Returns in how many seconds to
        look again: infinite if time alone changes nothing.
        """
        enough = self._copied_enough() if hangs else None
        tasks = [task for task in burst.share_running() if _may_be_copied(task, enough)]
        best, seconds = self._best_for(burst.device, len(tasks), now)
        if hangs and (best is None or not best.free or seconds > late):
            best, seconds = self._unknown_for(burst.device), 0.0
            if best is None:
                best, seconds = self._best_for(burst.device, len(tasks), now, resting=True)
        if not tasks:
            return math.inf
        if best is None:
            return self._look_at_next_event()
        if not best.free:
            self._look_at_next_event()
        if seconds > late + SAME_MOMENT:
            return seconds - late
        if not best.free:
            return math.inf
        tasks = tasks[: 1 if tasks[0].copied else best.batch_limit]
        saving = 0.0 if hangs else self._saving(best.expect(len(tasks)), now)
        if saving > 0:
            self._look_at_next_event()
            return saving
        copy = Burst(best, tasks, len(tasks), now)
        expected = best.expect(len(tasks)) if best.quickest < math.inf else 0.0
        self._copies.append(_Copy(burst, copy, tasks, expected))
        self._started += len(tasks)
        for task in tasks:
            task.copied = True
            self._recorder.hedged(task, best.name)
        best.assign(copy, now)
        self._new.append(copy)
        return math.inf

    def _best_for(
        self, device: Device, tasks: int, now: float, *, resting: bool = False
    ) -> tuple[Device | None, float]:
        """The device that would finish a copy first, and the seconds until then.

        One that is aside only if there is no other, or with ``resting``.
        """

        def seconds(other: Device) -> float:
            return other.free_in(now) + other.expect(min(tasks, other.batch_limit))

        others = [d for d in self._others(device) if d.quickest < math.inf]
        if not resting:
            others = [other for other in others if not other.aside] or others
        best = min(others, key=seconds, default=None)
        return best, math.nan if best is None else seconds(best)

    def _unknown_for(self, device: Device) -> Device | None:
        """A free device whose speed is unknown, as it has run nothing yet.

        None where that of ``device`` is unknown too, as then nothing says that it hangs.
        """
        if device.quickest == math.inf:
            return None
        others = [d for d in self._others(device) if d.free and d.quickest == math.inf]
        return min(others, key=lambda other: other.aside, default=None)

    def _others(self, device: Device) -> list[Device]:
        """The devices that do not hang, and may run a copy of what ``device`` runs."""
        hung = {device, *(burst.device for burst in self._hung)}
        return [d for d in self._roster.up if d not in hung and _may_run_copy(d)]

    def _saving(self, cost: float, now: float) -> float:
        """Seconds that devices must work until the budget allows a copy of this cost.

        0 or less if the budget allows it now.
        """
        all_seconds = sum(device.busy_seconds(now) for device in self._roster.members)
        running = sum(max(copy.expected, now - copy.burst.began) for copy in self._copies)
        missing = self._seconds + running + cost - self._hedge.budget * all_seconds
        return missing / self._hedge.budget

    def _goes_on(self, copy: _Copy, now: float) -> bool:
        """Settle the pair if its tasks have ended; return whether the copy is still on a device."""
        burst, original = copy.burst, copy.original
        running = burst in burst.device.bursts
        if not copy.settled and (not running or all(task.done for task in copy.tasks)):
            copy.settled = True
            self._tally(copy)
            left = self._is_left(original)
            if copy.won and original in original.device.bursts and not left:
                original.device.gave_up(original.running, now - original.call_began, now)
            for call in (burst,) if left else (original, burst):
                if call in call.device.bursts and call.abandoned:
                    self._outcomes.abandon(call)
        if not running:
            self._seconds += now - burst.began
        return running

    def _is_left(self, burst: Burst) -> bool:
        """Whether the call is not to be cancelled, though copies have answered for it."""
        device = burst.device
        silent = burst in self._hung and device.answered_at <= burst.call_began
        return silent or device.suspect

    def _copied_enough(self) -> set[Span]:
        """The tasks that hang and must not be copied again.

        Those of which a copy runs that does not hang itself. But also those whose copies hang too,
        if there are two, or it would take the last device: they may be the cause of it.
        """
        copies = [copy for copy in self._copies if not copy.settled]
        hung = {burst.device for burst in self._hung}
        others = sum(device not in hung and not device.suspect for device in self._roster.up)
        times = Counter(task for copy in copies for task in copy.tasks)
        enough = {task for task, copied in times.items() if copied >= min(POISON, others) - 1}
        well = [copy.tasks for copy in copies if copy.burst not in self._hung]
        return enough.union(*well)

    def _tally(self, copy: _Copy) -> None:
        """Count for each task whether the copy, the original or neither of them finished it."""
        for task in copy.tasks:
            by = task.run.device if task.done and task.outputs else ""
            self._won += by == copy.burst.device.name
            self._lost += by == copy.original.device.name
            self._cancelled += by not in (copy.burst.device.name, copy.original.device.name)


class _Copy:
    """A pair: a call, its copy, and the tasks they share."""

    __slots__ = ("burst", "expected", "original", "settled", "tasks")

    def __init__(self, original: Burst, burst: Burst, tasks: list[Span], expected: float) -> None:
        self.original = original
        #: the copy's burst
        self.burst = burst
        self.tasks = tasks
        #: seconds that the copy should take
        self.expected = expected
        #: whether all tasks have an outcome, or the copy has ended; it may still be on its device
        self.settled = False

    @property
    def won(self) -> bool:
        """Whether a result of the copy came before the original's."""
        return any(task.done and task.run.device == self.burst.device.name for task in self.tasks)


def _hangs(burst: Burst, call_began: float) -> bool:
    """Whether the call that began then, and may be copied, goes on, and somebody wants it."""
    goes_on = burst.live and not burst.abandoned and burst in burst.device.bursts
    return goes_on and burst.call_began == call_began and burst.device.repeatable


def _may_run_copy(device: Device) -> bool:
    return device.repeatable and not (device.suspect or device.held)


def _may_be_copied(task: Span, enough: set[Span] | None) -> bool:
    """Once only; or, of what hangs, until it was copied ``enough``."""
    if task.done or task.causes:
        return False
    return not task.copied if enough is None else task not in enough
