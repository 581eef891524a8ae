"""What runs while a dispatcher is open: lanes, devices, and the parts that serve them."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import anyio

from asyncinfer.burst import Burst
from asyncinfer.copies import Copies
from asyncinfer.deadlines import Deadlines
from asyncinfer.device import Device, names
from asyncinfer.errors import (
    ClosedError,
    DeadlineExceeded,
    NoDeviceError,
    QueueTimeout,
    TaskError,
)
from asyncinfer.events import EventHook
from asyncinfer.executor import Executor
from asyncinfer.failures import Failures
from asyncinfer.hedging import Hedge
from asyncinfer.intake import feed
from asyncinfer.keeper import Keeper
from asyncinfer.lane import CallLane, Lane
from asyncinfer.pool import Pool
from asyncinfer.recorder import Recorder, logger
from asyncinfer.scheduling import Policy
from asyncinfer.span import NOT_RUN, Span
from asyncinfer.timeouts import Timeouts

__all__ = ("Engine",)


class Engine:
    """One opening of a dispatcher. Made on the event loop it belongs to."""

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        policy: Policy,
        window: int,
        queue_size: int,
        retries: int,
        timeouts: Timeouts,
        hedge: Hedge | None,
        on_event: EventHook | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = clock_of(self.loop)
        self.recorder = Recorder(self.clock, on_event)
        #: from the end of opening to the beginning of closing
        self.accepting = False
        #: from the beginning of opening to the end of closing
        self.running = True
        self._window = window
        self._queue_size = queue_size
        self._timeouts = timeouts
        self._feeders: dict[Lane, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._lanes = 0
        self.keeper = Keeper(devices, self.recorder, self.clock, self.loop, timeouts)
        failures = Failures(self.recorder, retries)
        self._executor = Executor(
            self.recorder,
            self.clock,
            self.loop,
            failures=failures,
            run_timeout=timeouts.run,
            lost=self.keeper.recover,
        )
        self.pool = Pool(policy, self.recorder, self.clock, self.loop, self._executor.start)
        if hedge is not None:
            roster = self.pool.roster
            self.pool.copies = Copies(hedge, roster, self.recorder, self._executor)
        self._executor.pool = failures.pool = self.pool
        self.keeper.serve(self.pool, self._executor)
        self._deadlines = self._watch(timeouts)
        self.calls = self.new_lane(ordered=False, kind=CallLane)
        self.pool.lanes.append(self.calls)

    def _watch(self, timeouts: Timeouts) -> list[Deadlines]:
        limits = (
            (timeouts.total, self._unfinished, self._out_of_time),
            (timeouts.queue, self._unstarted, self._not_started),
        )
        return [
            Deadlines(seconds, self.clock, self.loop, rows, expire)
            for seconds, rows, expire in limits
            if seconds is not None
        ]

    # ---- lanes

    def new_lane(self, *, ordered: bool, kind: type[Lane] = Lane) -> Lane:
        """A lane for one stream, in the context of who asks for it."""
        lane = kind(
            self._lanes,
            self.recorder,
            self.clock,
            window=self._window,
            queue_size=self._queue_size,
            ordered=ordered,
        )
        self._lanes += 1
        return lane

    def begin(self, lane: Lane, source: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Start to read ``source`` into ``lane``. Raises ``ClosedError``."""
        self.check_open()
        self.pool.lanes.append(lane)
        feeding = feed(source, lane.intake, partial(self._accept, lane), self.clock)
        name = f"asyncinfer source {lane.number}"
        feeder = self.loop.create_task(feeding, name=name, context=lane.context)
        self._feeders[lane] = feeder
        feeder.add_done_callback(partial(self._fed, lane))  # called though it may never start

    def _accept(self, lane: Lane, inputs: list[Any]) -> None:
        """Take what the source gave; stop one that goes on though its reading was cancelled."""
        if lane.closed:
            raise ClosedError("nobody reads this stream any more")
        self.check_open()
        self.accept(lane, inputs)

    def _fed(self, lane: Lane, feeder: asyncio.Task[None]) -> None:
        """The source is at its end, or is not read any further."""
        self._feeders.pop(lane, None)
        if feeder.cancelled():
            text = "the dispatcher was closed before the source was read to its end"
            lane.end(ClosedError(text))
        else:
            lane.end(feeder.exception())
        self.pool.wake()

    def accept(self, lane: Lane, inputs: list[Any]) -> Span:
        """Queue tasks made of inputs, watched for their deadlines."""
        span = lane.accept(inputs)
        for limit in self._deadlines:
            limit.watch(span)
        self.pool.more(lane)
        return span

    async def call(self, value: Any) -> Any:
        """Run one task of its own."""
        if self.calls.intake.full():
            await self.calls.intake.room()
        self.check_open()
        task = self.accept(self.calls, [value])
        task.context = contextvars.copy_context()
        task.future = self.loop.create_future()
        try:
            return await task.future
        except asyncio.CancelledError:
            if not task.done:
                self.calls.discard(task)
                self._release()
            raise

    def drop(self, lane: Lane, error: BaseException | None = None) -> asyncio.Task[None] | None:
        """Nobody wants the lane's results any more; returns the reader that is now ending."""
        lane.source_error = error or lane.source_error
        running = [s for burst in self._bursts() for s in burst.spans if s.lane is lane]
        failed = [task for task in self.pool.retries if task.lane is lane]
        for span in (*lane.close(), *running, *failed):
            if not span.done:
                span.settle()
                self.recorder.dropped += span.count
                if span.future is not None and not span.future.done():
                    span.future.set_exception(error or ClosedError("the call was dropped"))
        self._release()
        self.leave(lane)
        feeder = self._feeders.get(lane)
        if feeder is not None:
            feeder.cancel()
        return feeder

    def leave(self, lane: Lane) -> None:
        """The lane is finished: count it no more among those that take turns."""
        if lane in self.pool.lanes and lane is not self.calls:
            self.pool.lanes.remove(lane)

    def _bursts(self) -> Iterator[Burst]:
        for device in self.keeper.devices:
            yield from list(device.bursts)

    def _release(self) -> None:
        """Free devices of tasks nobody waits for."""
        for burst in self._bursts():
            if burst.abandoned:
                self._executor.abandon(burst)
        self.pool.wake()

    # ---- deadlines

    def _unfinished(self) -> Iterator[Iterable[Span]]:
        for burst in self._bursts():
            self._executor.pass_on(burst, burst.began)
            yield burst.spans
        for task in list(self.pool.retries):
            yield (task,)
        for lane in list(self.pool.lanes):
            yield lane.waiting
            yield lane.intake

    def _unstarted(self) -> Iterator[Iterable[Span]]:
        self.pool.reclaim()
        self.pool.wake()
        for lane in list(self.pool.lanes):
            yield [span for span in lane.waiting if span.run is NOT_RUN]
            yield lane.intake

    def _out_of_time(self, spans: list[Span]) -> None:
        seconds = self._timeouts.total
        if any(device.up for device in self.keeper.devices):
            self._end(spans, DeadlineExceeded, f"not finished within {seconds} s")
            return
        text = f"no device is up after {seconds} s; there are {names(self.keeper.devices)}"
        self._end(spans, NoDeviceError, text)

    def _not_started(self, spans: list[Span]) -> None:
        text = f"not started within the queue timeout of {self._timeouts.queue} s"
        self._end(spans, QueueTimeout, text)

    def _end(self, spans: list[Span], kind: type[TaskError], text: str) -> None:
        """End every task of ``spans`` with an error, wherever it is now."""
        now = self.clock()
        for span in spans:
            if span.done:
                continue
            tasks = span.singles()
            for task in tasks:
                task.fail(now, kind, text)
            span.lane.withdraw(span)
            span.settle()  # where it is queued or running, it only keeps its place
            span.lane.finish(tasks)
            self.recorder.failed += len(tasks)
            for task in tasks:
                self.recorder.task_event("task.failed", task, task.error)
        self._release()

    # ---- from opening to closing

    async def open(self) -> None:
        """Open all devices, then accept work."""
        await self.keeper.open_all()
        self.accepting = True

    def check_open(self) -> None:
        """Raise ``ClosedError`` unless work is accepted."""
        if not self.accepting:
            raise ClosedError("the dispatcher is closed, or closing: it accepts no more tasks")

    async def drain(self, timeout: float | None) -> None:
        """Accept no more, and wait for what was accepted. Raises ``TimeoutError``."""
        self.accepting = False
        await self._stop_reading()
        for lane in self.pool.lanes:
            lane.lift_window()
        self.pool.wake()
        async with asyncio.timeout(timeout):
            await self.pool.quiet()

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

        Who is cancelled while waiting for that, even twice, is so at its end.
        """
        if self._closing is None:
            self.accepting = False
            error = ClosedError("the dispatcher was closed before this was finished")
            for lane in list(self.pool.lanes):
                if not lane.finished:
                    self.drop(lane, error)
            self._closing = self.loop.create_task(self._close(), name="asyncinfer close")
        await _ended(self._closing)

    async def _close(self) -> None:
        await asyncio.gather(self._stop_reading(), self.keeper.close_all())
        for limit in self._deadlines:
            limit.stop()
        self.pool.stop()
        self.running = False


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for ``task`` to its end, and only then be cancelled."""
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
    """A precise clock on the loop's own scale.

    uvloop's ``time()`` is the monotonic clock cached to the millisecond, so the clock itself is
    read. A loop whose time is something else (a virtual one) is asked.
    """
    return time.monotonic if abs(loop.time() - time.monotonic()) < 1.0 else loop.time
