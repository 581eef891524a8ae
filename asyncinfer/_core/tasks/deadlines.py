"""Ends tasks whose time has run out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.tasks.calls import CallFlow
from asyncinfer._core.tasks.lane import CallLane
from asyncinfer._core.tasks.lanes import Lanes
from asyncinfer._core.tasks.spans import NOT_RUN, Span, SpanHome
from asyncinfer.errors import DeadlineExceeded, NoDeviceError, QueueTimeout, TaskError
from asyncinfer.options import Timeouts

__all__ = ("Deadlines", "Limit")

#: shortest time an alarm is set for, in seconds: it may ring a little early, and is then set again
SHORTEST_WAIT = 1e-6

#: the places where tasks are; in each the oldest task comes first, each with when its time began
Places: TypeAlias = Iterable[Iterable[tuple[Span, float]]]
#: a function that ends the given tasks with an error of the given class and text
Expire: TypeAlias = Callable[[list[Span], type[TaskError], str], None]


class Deadlines:
    """The limits on a task's whole time, and on the time until it is started.

    Both count from the call of ``infer``. Of a stream's task the whole time counts from its turn,
    or from its start if that is later; and the time until it is started from when it came into the
    window: how far a source is read ahead takes no task's time.

    Tasks that have left their lanes are found through ``started``. ``reclaim`` returns tasks that
    devices have reserved and not started to their lanes. ``devices_if_none_up`` tells whether a
    task was not finished because no device was up, and then names the devices.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        lanes: Lanes,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        *,
        expire: Expire,
        started: Callable[[], Iterable[tuple[Span, float]]],
        reclaim: Callable[[], None],
        devices_if_none_up: Callable[[], str | None],
    ) -> None:
        self._lanes = lanes
        self._clock = clock
        self._expire = expire
        self._started = started
        self._reclaim = reclaim
        self._devices_if_none_up = devices_if_none_up
        limits = (
            (timeouts.total, self._unfinished, self._out_of_time),
            (timeouts.queue, self._unstarted, self._not_started),
        )
        #: to each of them, tasks are shown as they are accepted
        self.limits = [
            Limit(seconds, clock, loop, lanes, places, why, expire)
            for seconds, places, why in limits
            if seconds is not None
        ]

    def stop(self) -> None:
        """End no task any more."""
        for limit in self.limits:
            limit.stop()

    def passed(self, served: Iterable[SpanHome], now: float) -> None:
        """A pass has given devices tasks of the lanes ``served``: note whose turn it is now."""
        for home in served:
            home.got_on(now)
        for lane in self._lanes:
            if lane.by_turn:
                lane.front.note(lane.waiting, now)

    async def room(self, lane: CallLane, flow: CallFlow) -> float:
        """Wait until another call fits into ``flow``; return when this wait began.

        The limits count from then: raises the error of the first that passes.
        """
        began = self._clock()
        if not self.limits:
            await flow.room()
            return began
        first = min(self.limits, key=lambda limit: limit.seconds)
        try:
            async with asyncio.timeout(first.seconds):
                await flow.room()
        except TimeoutError:
            raise self._turned_away(lane.turn_away(flow, began), first) from None
        return began

    def _turned_away(self, task: Span, limit: Limit) -> TaskError:
        """What a call ends with that found no room in time."""
        self._expire([task], *limit.why(limit.seconds))
        assert task.error is not None  # noqa: S101  # it has ended with that
        return task.error

    def _unfinished(self, before: float) -> Iterator[Iterable[tuple[Span, float]]]:
        self._reclaim()
        self._lanes.admit()  # what came while all devices were busy
        none_up = self._devices_if_none_up() is not None
        for span, since in list(self._started()):
            yield ((span, since),)
            if since <= before and not span.done and not none_up:
                span.lane.got_on(self._clock())
        for lane in list(self._lanes):
            if lane.by_turn:
                yield from lane.front.times(lane.waiting, before, none_up=none_up)
            else:
                yield from map(_since, lane.places)

    def _unstarted(self, _: float) -> Iterator[Iterable[tuple[Span, float]]]:
        self._reclaim()
        self._lanes.admit()  # what came while all devices were busy
        for lane in list(self._lanes):
            for place in lane.places:
                yield _since(span for span in place if span.run is NOT_RUN)

    def _out_of_time(self, seconds: float) -> tuple[type[TaskError], str]:
        devices = self._devices_if_none_up()
        if devices is None:
            return DeadlineExceeded, f"not finished within {seconds} s"
        return NoDeviceError, f"no device is up after {seconds} s; there are {devices}"

    def _not_started(self, seconds: float) -> tuple[type[TaskError], str]:
        return QueueTimeout, f"not started within the queue timeout of {seconds} s"


class Limit:
    """One time limit.

    Nothing is stored for a task. The alarm is set for the oldest unfinished task; when it rings,
    all places are searched for tasks that are overdue, and it is set for the next oldest one. While
    there are tasks it rings once in ``seconds`` at least, as the time of each may have begun since.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        lanes: Lanes,
        places: Callable[[float], Places],
        why: Callable[[float], tuple[type[TaskError], str]],
        expire: Expire,
    ) -> None:
        self.seconds = seconds
        #: the error of a task that is overdue, and its text
        self.why = why
        self._clock = clock
        self._lanes = lanes
        self._places = places
        self._expire = expire
        self._alarm = Alarm(loop, self._ring)

    def watch(self, span: Span) -> None:
        """Watch the tasks of ``span``, accepted just now."""
        if not self._alarm.is_set:
            self._set(min(span.since, span.submitted) + self.seconds)

    def stop(self) -> None:
        """Watch no more."""
        self._alarm.cancel()

    def _set(self, due: float) -> None:
        self._alarm.within(max(SHORTEST_WAIT, due - self._clock()))

    def _ring(self) -> None:
        overdue, due = self._look(self._clock())
        if overdue:
            self._expire(overdue, *self.why(self.seconds))
        if due < math.inf:
            self._set(due)

    def _look(self, now: float) -> tuple[list[Span], float]:
        """The overdue tasks, and when to look again (infinite if no task is left)."""
        overdue: list[Span] = []
        before = now - self.seconds
        next_due = now + self.seconds if self._lanes.unfinished else math.inf
        for place in self._places(before):
            for span, since in place:
                if span.done:
                    continue
                if since > before:
                    next_due = min(next_due, since + self.seconds)
                    break
                overdue.append(span)
        return overdue, next_due


def _since(spans: Iterable[Span]) -> Iterator[tuple[Span, float]]:
    return ((span, span.since) for span in spans)
