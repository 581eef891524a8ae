"""Ends tasks whose time has run out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.tasks.lanes import Lanes
from asyncinfer._core.tasks.spans import NOT_RUN, Span
from asyncinfer.errors import DeadlineExceeded, NoDeviceError, QueueTimeout, TaskError
from asyncinfer.options import Timeouts

__all__ = ("Deadlines", "Limit")

#: shortest time an alarm is set for, in seconds: it may ring a little early, and is then set again
SHORTEST_WAIT = 1e-6

#: the places where tasks are; in each the oldest task comes first
Places: TypeAlias = Iterable[Iterable[Span]]
#: a function that ends the given tasks with an error of the given class and text
Expire: TypeAlias = Callable[[list[Span], type[TaskError], str], None]


class Deadlines:
    """The limits on a task's whole time, and on the time until it is started.

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
        started: Callable[[], Places],
        reclaim: Callable[[], None],
        devices_if_none_up: Callable[[], str | None],
    ) -> None:
        self._lanes = lanes
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
            Limit(seconds, clock, loop, places, expired)
            for seconds, places, expired in limits
            if seconds is not None
        ]

    def stop(self) -> None:
        """End no task any more."""
        for limit in self.limits:
            limit.stop()

    def _unfinished(self) -> Iterator[Iterable[Span]]:
        yield from self._started()
        for lane in list(self._lanes):
            yield lane.waiting
            yield lane.intake

    def _unstarted(self) -> Iterator[Iterable[Span]]:
        self._reclaim()
        for lane in list(self._lanes):
            yield [span for span in lane.waiting if span.run is NOT_RUN]
            yield lane.intake

    def _out_of_time(self, spans: list[Span], seconds: float) -> None:
        devices = self._devices_if_none_up()
        if devices is None:
            self._expire(spans, DeadlineExceeded, f"not finished within {seconds} s")
        else:
            text = f"no device is up after {seconds} s; there are {devices}"
            self._expire(spans, NoDeviceError, text)

    def _not_started(self, spans: list[Span], seconds: float) -> None:
        text = f"not started within the queue timeout of {seconds} s"
        self._expire(spans, QueueTimeout, text)


class Limit:
    """One time limit, counted from the acceptance of each task.

    Nothing is stored for a task. The alarm is set for the oldest unfinished task; when it rings,
    all places are searched for tasks that are overdue, and it is set for the next oldest one.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        places: Callable[[], Places],
        expired: Callable[[list[Span], float], None],
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._places = places
        self._expired = expired
        self._alarm = Alarm(loop, self._ring)

    def watch(self, span: Span) -> None:
        """Watch the tasks of ``span``, accepted just now."""
        if not self._alarm.is_set:
            self._set(span.submitted + self._seconds)

    def stop(self) -> None:
        """Watch no more."""
        self._alarm.cancel()

    def _set(self, due: float) -> None:
        self._alarm.within(max(SHORTEST_WAIT, due - self._clock()))

    def _ring(self) -> None:
        overdue, due = self._look(self._clock())
        if overdue:
            self._expired(overdue, self._seconds)
        if due < math.inf:
            self._set(due)

    def _look(self, now: float) -> tuple[list[Span], float]:
        """The overdue tasks, and when the next task will be overdue (infinite if there is none)."""
        overdue: list[Span] = []
        next_due = math.inf
        for place in self._places():
            for span in place:
                if span.done:
                    continue
                due = span.submitted + self._seconds
                if due > now:
                    next_due = min(next_due, due)
                    break
                overdue.append(span)
        return overdue, next_due
