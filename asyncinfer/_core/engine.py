"""What runs while a dispatcher is open: makes the parts, starts streams, and ends everything."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio

from asyncinfer._core.devices.apart import quiet
from asyncinfer._core.devices.device import Burst, names
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.supervisor import Supervisor
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.dispatch.bindings import Bindings
from asyncinfer._core.dispatch.executor import Executor
from asyncinfer._core.dispatch.hedging import Hedging
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer._core.dispatch.pool import Pool
from asyncinfer._core.dispatch.recheck import Recheck
from asyncinfer._core.dispatch.retries import Retries
from asyncinfer._core.dispatch.sharers import Sharers
from asyncinfer._core.dispatch.short_way import ShortWay, suits
from asyncinfer._core.tasks.ahead import ReadAhead
from asyncinfer._core.tasks.calls import CallFlow
from asyncinfer._core.tasks.deadlines import Deadlines
from asyncinfer._core.tasks.front import counted_from
from asyncinfer._core.tasks.lane import CallLane, Lane
from asyncinfer._core.tasks.lanes import Lanes
from asyncinfer._core.tasks.recorder import Recorder, logger
from asyncinfer._core.tasks.source import feed
from asyncinfer._core.tasks.spans import Span
from asyncinfer._core.tasks.turns import PLAIN, Claim
from asyncinfer.driver import Driver
from asyncinfer.errors import ClosedError, ConfigError
from asyncinfer.events import EventHook
from asyncinfer.options import Hedge, Timeouts
from asyncinfer.scheduling.policy import Policy

__all__ = ("Engine",)

LaneT = TypeVar("LaneT", bound=Lane)
#: sources that hold all their inputs: to read them ahead takes no memory
HOLDERS = (list, tuple, range, set, frozenset, dict, deque)


class Engine:
    """Everything that runs from one entering of a dispatcher to its leaving.

    It makes the parts and connects them: lanes hold tasks, the roster holds devices, the pool
    decides which device runs which tasks, the executor runs them, and outcomes go back to the
    lanes. An engine is made inside a running event loop and used from that loop only.

    ``wake`` is called on every change (a task came, a device is free, the window moved); tasks are
    assigned to devices once per turn of the event loop, so a thousand changes cost one pass.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        window: int,
        queue_size: int,
        queue_bytes: float,
        retries: int,
        timeouts: Timeouts,
        hedge: Hedge | None,
        on_event: EventHook | None,
    ) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.clock = clock = clock_of(loop)
        self.recorder = recorder = Recorder(clock, on_event)
        self.lanes = lanes = Lanes()
        self.roster = roster = Roster(recorder)
        #: failed tasks that wait to be run again
        trust = Trust(roster, clock)
        self.retries = Retries(roster, trust, retries)
        #: which of the devices that share something take part; ``None`` where the policy decides
        self._sharers = Sharers(roster) if getattr(policy, "chooses_sets", False) else None
        self._outcomes = Outcomes(
            roster,
            self.retries,
            trust,
            recorder,
            clock,
            most_retries=retries,
            wake=self.wake,
            brought=None if self._sharers is None else self._sharers.ended,
        )
        #: starts copies of overdue tasks
        self.hedging = Hedging(hedge, roster, recorder, self._outcomes)
        self._recheck = Recheck(roster, loop, clock, self.wake)
        bindings = Bindings(roster, self._outcomes)
        self._pool = Pool(
            policy, lanes, roster, self.retries, self.hedging, self._recheck, bindings, trust
        )
        self.supervisor = Supervisor(
            roster,
            recorder,
            clock,
            loop,
            timeouts,
            take_back=self._outcomes.take_back,
            overdue=self._rescue,
            wake=self.wake,
        )
        self._watchdog = self.supervisor.watchdog
        self._executor = Executor(
            self._outcomes,
            clock,
            loop,
            run_timeout=None if timeouts.run == "auto" else timeouts.run,
            device_failed=self.supervisor.device_failed,
        )
        #: ends tasks whose time has run out
        self._deadlines = Deadlines(
            timeouts,
            lanes,
            clock,
            loop,
            expire=self._outcomes.expire,
            started=self._started_tasks,
            reclaim=self._reclaim,
            devices_if_none_up=self._devices_if_none_up,
        )
        #: whether tasks are accepted: from the end of opening until draining or closing begins
        self.accepting = False
        #: whether anything may be running: from the beginning of opening to the end of closing
        self.running = True
        self._window = window
        self._queue_size = queue_size
        self._queue_bytes = queue_bytes
        self._timeouts = timeouts
        self._feeders: dict[Lane, asyncio.Task[None]] = {}
        #: of the same lanes
        self._ahead: dict[Lane, ReadAhead] = {}
        self._closing: asyncio.Task[None] | None = None
        #: waits for the end of the event loop
        self._guard: asyncio.Task[None] | None = None
        self._lanes_made = 0
        self._wakeup: asyncio.Handle | None = None
        #: set once every accepted task has ended; made only when somebody waits for that
        self._quiet: asyncio.Event | None = None
        self.calls = self._make_lane(CallLane, ordered=False)
        self.lanes.join(self.calls)
        #: where calls of ``infer`` go that have nothing to wait for but a device
        self.short = ShortWay(
            self.calls,
            lanes,
            roster,
            policy,
            suits=suits(policy) and hedge is None and not self._deadlines.limits,
            limit=min(window, queue_size),
            retries=self.retries,
            trust=trust,
            hedging=self.hedging,
            sharers=self._sharers,
            outcomes=self._outcomes,
            executor=self._executor,
            recorder=recorder,
            clock=clock,
            loop=loop,
            wake=self.wake,
            arm=self._watchdog.arm,
        )

    # ---- assigning tasks to devices

    def wake(self) -> None:
        """Assign tasks to devices in the next turn of the event loop."""
        if self._wakeup is None:
            self._wakeup = self.loop.call_soon(self._assign)

    def wake_if_free(self, lane: Lane | CallFlow) -> None:
        """Tasks came to ``lane``, or its window moved: assign them if a device is free.

        While none is, the next one to become free wakes the engine.
        """
        if not self._pool.full:
            self.wake()
        elif lane.intake.full():
            lane.admit()  # this makes room in the intake, so that the source is read on

    def _assign(self) -> None:
        self._wakeup = None
        now = self.clock()
        if self._sharers is not None:
            self._sharers.look(now)
        if self.short.goes_on():
            self._pool.nothing_waits()
        else:
            self._pass(now)
        self._watchdog.arm()
        if self._quiet is not None and not self.lanes.unfinished:
            self._quiet.set()

    def _pass(self, now: float) -> None:
        """Give waiting tasks to free devices."""
        bursts = self._pool.assign(now)
        if self._deadlines.limits:
            self._deadlines.passed([burst.lane for burst in bursts], now)
        if self._sharers is not None:
            self._sharers.passed(bursts, self.lanes.waiting > 0)
            if self._pool.others_held:  # these were held back or let go only after the look
                self.wake()
        for burst in bursts:
            self._executor.start(burst)
        for ahead in self._ahead.values():
            ahead.look()
        if self.accepting:
            self.short.look()

    def _rescue(self, burst: Burst) -> None:
        """A call is long overdue: have it copied if somebody waits for it."""
        self.hedging.rescue(burst)
        self.wake()

    # ---- lanes

    def new_lane(self, *, ordered: bool, claim: Claim = PLAIN) -> Lane:
        """Make a lane for one stream. Its tasks run in the caller's ``contextvars`` context."""
        return self._make_lane(Lane, ordered=ordered, claim=claim)

    def _make_lane(self, kind: type[LaneT], *, ordered: bool, claim: Claim = PLAIN) -> LaneT:
        lane = kind(
            self._lanes_made,
            self.recorder,
            self.clock,
            window=self._window,
            queue_size=self._queue_size,
            ordered=ordered,
            claim=claim,
        )
        self._lanes_made += 1
        return lane

    def start_reading(self, lane: Lane, source: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Start to read ``source`` into ``lane``. Raises ``ClosedError``."""
        self.check_open()
        self.short.leave()
        self.lanes.join(lane)
        limit = math.inf if type(source) in HOLDERS else self._queue_bytes
        ahead = self._ahead[lane] = lane.ahead = ReadAhead(lane.intake, lane.waiting, limit)
        feeding = feed(source, ahead, partial(self._accept, lane), self.clock)
        name = f"asyncinfer source {lane.number}"
        feeder = self.loop.create_task(feeding, name=name, context=lane.context)
        self._feeders[lane] = feeder
        # a callback, since a feeder that is cancelled before it starts runs none of its own code
        feeder.add_done_callback(partial(self._source_ended, lane))

    def _accept(self, lane: Lane, inputs: list[Any]) -> None:
        """Make tasks of what the source gave.

        Raises ``ClosedError`` if the stream has ended: so a source that ignores that its reading
        was cancelled stops nevertheless.
        """
        if lane.closed:
            raise ClosedError("nobody reads this stream any more")
        self.check_open()
        self._queue(lane, inputs)

    def _source_ended(self, lane: Lane, feeder: asyncio.Task[None]) -> None:
        """The source is exhausted, has failed, or is not read any further."""
        self._feeders.pop(lane, None)
        self._ahead.pop(lane, None)
        if not feeder.cancelled():
            lane.no_more(feeder.exception())
        elif feeder.cancelling() and not self.accepting:
            text = "the dispatcher was closed before the source was read to its end"
            lane.no_more(ClosedError(text))
        else:
            lane.no_more(_cut_off(feeder))
        self.wake()

    def _queue(self, lane: Lane | CallFlow, inputs: list[Any], since: float | None = None) -> Span:
        """Make tasks of ``inputs``, queue them in ``lane``, and watch their time limits.

        With ``since``, the limits count from then.
        """
        span = lane.accept(inputs)
        if since is not None:
            span.since = since
        for limit in self._deadlines.limits:
            limit.watch(span)
        self.wake_if_free(lane)
        return span

    async def call(self, value: Any, claim: Claim = PLAIN) -> Any:
        """Run one task that belongs to no stream, and return its output, or raise its error."""
        if self.roster.stateful:
            raise ConfigError(
                "the devices are stateful, and infer belongs to no stream: use stream"
            )
        self.check_open()
        flow, since = self.calls.flow(claim), None
        if flow.intake.full():
            try:
                since = await self._deadlines.room(self.calls, flow)
            except BaseException:
                del value  # an error that is kept holds this frame
                raise
            self.check_open()
            flow = self.calls.flow(claim)
        task = self._queue(flow, [value], since)
        task.context = contextvars.copy_context()
        task.future = self.loop.create_future()
        del value  # an error that is kept holds this frame
        try:
            return await task.future
        except asyncio.CancelledError:
            if not task.done:
                self.calls.discard(task)
                self._outcomes.abandon_unwanted()
            raise
        finally:
            del task

    def drop(self, lane: Lane, error: BaseException | None = None) -> asyncio.Task[None] | None:
        """End a lane whose results nobody wants any more.

        Returns the asyncio task that reads its source and was cancelled, if there is one. With
        ``error``, a caller or consumer that still waits is told of it.
        """
        running = [s for burst in self.roster.bursts for s in burst.spans if s.lane is lane]
        failed = [task for task in self.retries.tasks if task.lane is lane]
        for span in (*lane.close(error), *running, *failed):
            if not span.done:
                span.settle()
                if span.future is not None and not span.future.done():
                    span.future.set_exception(error or ClosedError("the call was dropped"))
        self._outcomes.abandon_unwanted()
        self.leave(lane)
        feeder = self._feeders.get(lane)
        if feeder is not None:
            feeder.cancel()
        return feeder

    def leave(self, lane: Lane) -> None:
        """The lane is finished: it is not asked for tasks any more."""
        if lane is not self.calls:
            self.lanes.leave(lane)

    # ---- what the time limits need to know

    def _started_tasks(self) -> Iterator[tuple[Span, float]]:
        """The tasks on devices that have no output yet, and failed tasks that wait to run again.

        Each with when its time began.
        """
        for burst in self.roster.bursts:
            self._outcomes.pass_on(burst, burst.began)
            for span in burst.spans:
                yield span, counted_from(span, burst.call_began)
        for task in self.retries.tasks:
            yield task, task.since

    def _reclaim(self) -> None:
        """Have tasks that devices have reserved and not started wait in their lanes again."""
        self.roster.reclaim()
        self.wake()

    def _devices_if_none_up(self) -> str | None:
        """The names and states of all devices if none of them is up, else ``None``."""
        return None if self.roster.any_up else names(self.roster.devices)

    # ---- from opening to closing

    async def open(self, drivers: Sequence[Driver[Any, Any]], *, wait_for_all: bool) -> None:
        """Open the devices, and accept work once one of them is up, or each has been tried.

        Raises ``ClosedError`` if closed meanwhile.
        """
        self._guard = self.loop.create_task(self._end_with_loop(), name="asyncinfer guard")
        quiet(self._guard)
        await self.supervisor.open_all(drivers, wait_for_all=wait_for_all)
        if self._closing is not None:
            raise ClosedError("the dispatcher was closed while it was opening")
        self.accepting = True

    @property
    def ready(self) -> bool:
        """Whether work is accepted, and a device may answer it: see ``Device.may_answer``."""
        now = self.clock()
        return self.accepting and any(d.may_answer(now) for d in self.roster.members)

    def check_open(self) -> None:
        """Raise ``ClosedError`` unless work is accepted."""
        if not self.accepting:
            raise ClosedError("the dispatcher is closed, or closing: it accepts no more tasks")

    async def drain(self, timeout: float | None) -> None:
        """Accept no more, and wait for what was accepted. Raises ``TimeoutError``."""
        self.accepting = False
        self.short.leave()
        await self._stop_reading()
        for lane in self.lanes:
            lane.lift_window()
        self.wake()
        async with asyncio.timeout(timeout):
            await self._all_ended()

    async def _all_ended(self) -> None:
        while self.lanes.unfinished:
            if self._quiet is None:
                self._quiet = asyncio.Event()
            await self._quiet.wait()

    async def _stop_reading(self) -> None:
        feeders = list(self._feeders.values())
        for feeder in feeders:
            feeder.cancel()
        if feeders:
            _, left = await asyncio.wait(feeders, timeout=self._timeouts.close)
            if left:
                logger.warning("%d sources did not stop within the close timeout", len(left))

    async def close(self) -> None:
        """Cancel what is not finished, and close all devices.

        If the caller is cancelled, closing still completes; the cancellation is raised afterwards.
        """
        if self._closing is None:
            self.accepting = False
            self.short.leave()
            error = ClosedError("the dispatcher was closed before this was finished")
            for lane in list(self.lanes):
                if not lane.finished:
                    self.drop(lane, error)
            self._closing = self.loop.create_task(self._close(), name="asyncinfer close")
        await _wait_for(self._closing)

    async def _end_with_loop(self) -> None:
        """Close everything once all tasks are cancelled: so ``asyncio.run`` ends what was not left.

        That waits for what it cancels, and so for the close timeout at most.
        """
        try:
            await self.loop.create_future()
        except asyncio.CancelledError:  # else the loop was closed and nothing can be done any more
            if self._closing is None:
                await self.close()
            raise

    async def _close(self) -> None:
        await asyncio.gather(self._stop_reading(), self.supervisor.close_all())
        self._deadlines.stop()
        self._recheck.cancel()
        self.hedging.close(self.clock())
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup = None
        self.running = False
        if self._guard is not None:
            self._guard.cancel()


def _cut_off(feeder: asyncio.Task[None]) -> RuntimeError:
    """What tells a reader, who is not cancelled, that its source was."""
    by = "its reading was cancelled" if feeder.cancelling() else "it raised CancelledError"
    told = RuntimeError(f"the source was not read to its end: {by}")
    try:
        feeder.exception()
    except asyncio.CancelledError as error:
        told.__cause__ = error
    return told


async def _wait_for(task: asyncio.Task[None]) -> None:
    """Wait until ``task`` has ended, even if the caller is cancelled: that is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """A function that returns the loop's time, to the precision of the system's clock.

    uvloop's ``time()`` is the system's monotonic clock, but only to the millisecond and cached for
    one turn of the loop; so the system's clock is read instead. A loop with a time of its own, such
    as a virtual one, is asked itself.
    """
    return time.monotonic if abs(loop.time() - time.monotonic()) < 1.0 else loop.time
