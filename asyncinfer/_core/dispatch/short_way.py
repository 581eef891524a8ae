"""The short way of ``infer``: from a caller to a free device and back, if nothing stands between.

``docs/inside.md`` says which calls take it. All others, and all that goes wrong, take the common
way of streams: ``leave`` hands over what waits here.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Any, NamedTuple, TypeAlias

from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.dispatch.executor import Executor
from asyncinfer._core.dispatch.hedging import Hedging
from asyncinfer._core.dispatch.incontext import Begun, asked, given, raised
from asyncinfer._core.dispatch.outcomes import Outcomes, has_errors
from asyncinfer._core.dispatch.retries import Retries
from asyncinfer._core.dispatch.sharers import Sharers
from asyncinfer._core.tasks.calls import Call
from asyncinfer._core.tasks.lane import CallLane
from asyncinfer._core.tasks.lanes import Lanes
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer._core.tasks.spans import Span
from asyncinfer._core.tasks.turns import PLAIN, Claim
from asyncinfer.scheduling.baselines import Greedy
from asyncinfer.scheduling.census import Census
from asyncinfer.scheduling.earliest_finish import EarliestFinish
from asyncinfer.scheduling.policy import Policy

__all__ = ("ShortWay", "suits")

#: seconds for which calls that are answered at once follow each other in one turn of the event loop
LONGEST_TURN = 0.0005
#: so many calls take the common way after one that found no device free, or only one that the
#: policy did not want to have it: others are likely to meet the same. If they do, it is twice as
#: many each time, up to the second figure
CALLS_AWAY, MOST_CALLS_AWAY = 32, 4096


def suits(policy: Policy) -> bool:
    """Whether the short way knows what the policy looks at. One of a user's own may see more."""
    return type(policy) in (EarliestFinish, Greedy)


class ShortWay:
    """Calls of ``infer`` that wait for a free device, and what brings them there.

    One asyncio task, the runner, gives the fastest free device one call after the other, as long as
    they are answered at once. No span or burst is made of these. As soon as a call has to be waited
    for, spans and a burst are made of it, and the runner becomes that burst's runner: from then on
    it is like any other, for the watchdog, time limits, a lost device, or a caller that is gone.
    The next runner goes on with what waits; if no device is free, it leaves that to the pool.

    Nothing of it is used while ``open`` is false.
    """

    def __init__(
        self,
        lane: CallLane,
        lanes: Lanes,
        roster: Roster,
        policy: Policy,
        *,
        suits: bool,
        limit: int,
        retries: Retries,
        trust: Trust,
        hedging: Hedging,
        sharers: Sharers | None,
        outcomes: Outcomes,
        executor: Executor,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        arm: Callable[[], None],
    ) -> None:
        #: whether calls take this way now
        self.open = False
        #: the calls that wait, the oldest first
        self.calls: deque[_Call] = deque()
        #: the tasks of those that were handed over and whose callers wait
        self._spans: dict[asyncio.Future[Any], Call] = {}
        #: most calls that may be unfinished for another one to take this way
        self._limit = limit
        self._suits = suits
        self._lane = lane
        self._lanes = lanes
        self._roster = roster
        self._policy = policy
        self._retries = retries
        self._trust = trust
        self._hedging = hedging
        self._sharers = sharers
        self._outcomes = outcomes
        self._executor = executor
        self._recorder = recorder
        self._observed = recorder.observed
        self._clock = clock
        self._loop = loop
        self._wake = wake
        self._arm = arm
        self._view = _View(roster)
        #: when the calls of this turn of the event loop are accepted
        self._now = 0.0
        #: what looks for a device for the first call; ``None`` if nothing does
        self._runner: asyncio.Task[None] | None = None
        #: the number of the call from which on this way may be open again
        self._not_before = 0
        #: how many calls that was after it was left, and the number of the first since it is open
        self._pause, self._opened_at = CALLS_AWAY, 0
        #: whether no device waits for fuller batches, and at which number of comings that was seen
        self._none_fills, self._as_of = True, -1

    # ---- whether it is open

    def goes_on(self) -> bool:
        """Something has changed: whether this way is right still, so that no pass is needed.

        If it is not any more, what waits here is left to the pass.
        """
        if self.open and not self._fits():
            self._hand_over()
        return self.open

    def look(self) -> None:
        """A pass was made: this way may be right now."""
        self.open = self._suits and self._fits()
        if self.open:
            self._opened_at = self._lane.accepted

    def _fits(self) -> bool:
        """Whether nothing but calls of ``infer`` is to be done, and all is as it should be."""
        lane, sharers = self._lane, self._sharers
        return (
            len(self._lanes) == 1
            and not (lane.waiting.tasks or lane.closed)
            and not (self._retries.active or self._trust.questionable or self._hedging.active)
            and (sharers is None or not sharers.any)
            and lane.accepted >= self._not_before
            and self._takes_what_is_there()
        )

    def _takes_what_is_there(self) -> bool:
        """Whether no device is stateful, or waits for fuller batches."""
        roster = self._roster
        if self._as_of != roster.comings_and_goings:
            self._as_of = roster.comings_and_goings
            self._none_fills = not any(device.max_wait for device in roster.members)
        return self._none_fills and not roster.stateful

    def leave(self) -> None:
        """Have calls take the common way from now on, those that wait first of all."""
        self._hand_over()
        self._wake()

    def _hand_over(self) -> None:
        self.open = False
        lane, flow = self._lane, self._lane.flow(PLAIN)
        while self.calls:
            call = self.calls.popleft()
            if not call[0].done():
                lane.admitted += 1
                flow.add(self._span(call))

    def _leave_for_a_while(self) -> None:
        """What waits has to wait on: the pool knows best for which device."""
        accepted = self._lane.accepted
        often = accepted - self._opened_at < self._pause
        self._pause = min(2 * self._pause, MOST_CALLS_AWAY) if often else CALLS_AWAY
        self._not_before = accepted + self._pause
        self.leave()

    # ---- callers

    def enter(self, value: Any, claim: Claim = PLAIN) -> asyncio.Future[Any] | None:
        """Have a task run that belongs to no stream; returns what will have its output or error.

        ``None`` if it has to take the common way, since this one is not open, too many calls are
        unfinished, or it has a claim, for which calls take turns. Calls that come in one turn of
        the event loop are accepted together.
        """
        if not self.open:
            return None
        if claim is not PLAIN:
            self.leave()
            return None
        lane = self._lane
        number = lane.accepted
        if number - lane.ended_tasks >= self._limit:
            self.leave()
            return None
        future = self._loop.create_future()
        lane.accepted = number + 1
        self._recorder.submitted += 1
        if self._runner is None:
            self._now = self._clock()
            self._start()
        self.calls.append((future, value, copy_context(), self._now, number))
        return future

    def gone(self, future: asyncio.Future[Any]) -> None:
        """The caller is gone: withdraw its call, and cancel it if it runs.

        Calls that are answered are counted where that is done, all others here or as tasks.
        """
        lane, span = self._lane, self._spans.pop(future, None)
        if span is not None:
            if not span.done:
                lane.discard(span)
                self._outcomes.abandon_unwanted()
        elif future.cancel() or future.cancelled():
            for call in self.calls:
                if call[0] is future:
                    self.calls.remove(call)
                    break
            lane.admitted += 1
            lane.delivered += 1
            lane.ended_tasks += 1
            self._wake()  # somebody may wait for all to have ended

    # ---- the runner

    def _start(self) -> None:
        """Have a runner look for a device in the next turn of the event loop."""
        # not made by the loop: a task factory may run it here and now
        self._runner = asyncio.Task(
            self._run(), loop=self._loop, name="asyncinfer calls", context=self._lane.context
        )

    async def _run(self) -> None:
        """Serve calls until one has to be waited for, and then wait for that one."""
        begun: _Begun | None = None
        try:
            begun = self._serve()
            while begun is None and self.calls:
                await asyncio.sleep(0)
                begun = self._serve()
        finally:
            self._runner = None
            if begun is None and self.calls:  # a driver that answered at once has cancelled this
                self.leave()
        if begun is not None:
            burst = self._burst(begun)
            if self.calls:
                self._start()
            await self._executor.carry_on(burst, begun.rest)

    def _serve(self) -> _Begun | None:
        """Give waiting calls to the fastest free device, as long as it answers at once.

        Returns the first call that it does not answer so. The policy is asked once: nothing that it
        looks at has changed when a call is over at once, but that fewer calls wait.
        """
        self._roster.update()
        if not self._roster.free:
            self._leave_for_a_while()
            return None
        device = self._roster.free[0][2]
        turn = _Turn(device, self._clock())
        most, until, begun = 0, turn.began + LONGEST_TURN, None
        while self.calls and begun is None and turn.ended < until:
            if most == 0 or len(self.calls) < most:
                most = self._granted(device, turn.ended)
                if most == 0:
                    self._leave_for_a_while()
                    break
            if most == 1:
                call = self.calls.popleft()
                if not call[0].done():
                    begun = self._ask_one(turn, call)
            elif taken := self._take(most):
                begun = self._ask(turn, taken)
        if turn.calls:
            self._count(turn)
        self._now = turn.ended
        return begun

    def _granted(self, device: Device, now: float) -> int:
        """How many calls the device is to have in one batch; 0 if others should have the first."""
        if device.suspect or device.record.distrusted or device.quickest == math.inf:
            return 0
        view = self._view
        view.now, view.waiting, view.devices = now, len(self.calls), self._roster.active
        grant = self._policy.pull(device, view)
        return 0 if grant is None or grant.skip or grant.trial else min(grant.take, view.waiting)

    def _take(self, most: int) -> list[_Call]:
        """Take the first calls whose callers are not gone."""
        calls = self.calls
        if most == len(calls):
            taken = list(calls)
            calls.clear()
        else:
            taken = [calls.popleft() for _ in range(most)]
        return [call for call in taken if not call[0].done()]

    def _ask_one(self, turn: _Turn, call: _Call) -> _Begun | None:
        """As ``_ask`` with one call, in fewer steps."""
        future, value, context, submitted, _ = call
        context = context.copy()
        steps = asked(turn.device.driver, [value])
        try:
            awaited = context.run(steps.send, None)
        except StopIteration as end:
            outputs = end.value
            if type(outputs) is list and len(outputs) == 1 and not future.done():
                output = outputs[0]
                if not isinstance(output, BaseException):
                    started, turn.ended = turn.ended, self._clock()
                    turn.calls += 1
                    turn.tasks += 1
                    future.set_result(output)
                    turn.latencies.append(turn.ended - submitted)
                    if self._observed:
                        self._tell(turn, call, started)
                    return None
            return _Begun(turn.device, [call], given(outputs), turn.ended)
        except BaseException as error:  # whatever it is: it is judged where others are
            return _Begun(turn.device, [call], raised(error), turn.ended)
        return _Begun(turn.device, [call], Begun(context, steps, awaited), turn.ended)

    def _ask(self, turn: _Turn, taken: list[_Call]) -> _Begun | None:
        """Make one call of the driver; return it unless it is over, as it should be."""
        context = taken[0][2].copy()
        steps = asked(turn.device.driver, [call[1] for call in taken])
        rest: Awaitable[Any]
        try:
            awaited = context.run(steps.send, None)
        except StopIteration as end:
            outputs = end.value
            if type(outputs) is list and len(outputs) == len(taken) and not has_errors(outputs):
                self._answer(turn, taken, outputs)
                return None
            rest = given(outputs)
        except BaseException as error:  # whatever it is: it is judged where others are
            rest = raised(error)
        else:
            rest = Begun(context, steps, awaited)
        return _Begun(turn.device, taken, rest, turn.ended)

    def _answer(self, turn: _Turn, taken: list[_Call], outputs: list[Any]) -> None:
        """Give the callers what they wait for."""
        started, turn.ended = turn.ended, self._clock()
        turn.calls += 1
        turn.tasks += len(taken)
        ended, gone = turn.ended, 0
        for call, output in zip(taken, outputs):  # noqa: B905  # they are as many
            if call[0].done():  # cancelled within the call
                gone += 1
            else:
                call[0].set_result(output)
        if gone:
            taken = [call for call in taken if not call[0].cancelled()]
        turn.latencies += [ended - call[3] for call in taken]
        if self._observed:
            for call in taken:
                self._tell(turn, call, started)

    def _tell(self, turn: _Turn, call: _Call, started: float) -> None:
        """Tell the observer of a task that has its result."""
        name, number = turn.device.name, self._lane.number
        self._recorder.finished_at_once(name, call[4], number, started)

    def _count(self, turn: _Turn) -> None:
        """Count what was answered at once in this turn; it counts as one burst would."""
        lane, device, wanted = self._lane, turn.device, len(turn.latencies)
        lane.admitted += wanted
        lane.delivered += wanted
        lane.ended_tasks += wanted
        device.count_at_once(turn.tasks, turn.calls, turn.began, turn.ended)
        self._trust.answered(device, turn.tasks)
        self._recorder.count_at_once(turn.latencies, turn.began, turn.ended)

    # ---- from here to the common way

    def _burst(self, begun: _Begun) -> Burst:
        """Make what the others know of a call that goes on."""
        spans: list[Span] = [self._span(call) for call in begun.calls]
        self._lane.admitted += len(spans)
        burst = Burst(begun.device, spans, len(spans), begun.at)
        burst.runner = asyncio.current_task()
        begun.device.assign(burst, begun.at)
        begun.calls.clear()
        self._arm()
        return burst

    def _span(self, call: _Call) -> Call:
        """The task of a call."""
        future, value, context, submitted, number = call
        span = self._spans[future] = Call(self._lane, number, [value], submitted)
        span.flow = self._lane.flow(PLAIN)
        span.future, span.context = future, context
        future.add_done_callback(self._forget)
        return span

    def _forget(self, future: asyncio.Future[Any]) -> None:
        """A call that became a task has its outcome. Of one that is cancelled, ``gone`` comes."""
        if not future.cancelled():
            self._spans.pop(future, None)


#: a call of ``infer``: where its answer goes, its input, its caller's context, when it was
#: accepted, and its index among all. A tuple is what costs least
_Call: TypeAlias = tuple[asyncio.Future[Any], Any, Context, float, int]


class _Turn:
    """What one device has answered at once, in one turn of the event loop."""

    __slots__ = ("began", "calls", "device", "ended", "latencies", "tasks")

    def __init__(self, device: Device, began: float) -> None:
        self.device = device
        self.began = self.ended = began
        #: how many calls of its driver, with how many tasks
        self.calls = self.tasks = 0
        #: of each task that is still wanted, the seconds from its acceptance on
        self.latencies: list[float] = []


class _Begun(NamedTuple):
    """A call of a driver that was begun, and has to be waited for or judged."""

    device: Device
    calls: list[_Call]
    rest: Awaitable[Sequence[Any]]
    at: float


class _View:
    """The calls that wait here, as policies see them: a ``scheduling.PoolView``."""

    def __init__(self, roster: Roster) -> None:
        self.now = 0.0
        self.waiting = 0
        self.backlog = False
        self.devices: Sequence[Device] = ()
        self._roster = roster

    @property
    def census(self) -> Census:
        """The devices that are up and not long overdue, counted by their latency."""
        return self._roster.census

    def index(self, offset: int) -> int:
        """Ours do not ask for it."""
        return offset
