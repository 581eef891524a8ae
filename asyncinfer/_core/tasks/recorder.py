"""Counts what happens, and calls the user's ``on_event``."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NoReturn

from asyncinfer._core.tasks.spans import Span
from asyncinfer.events import Event, EventHook, EventKind
from asyncinfer.stats import percentile

__all__ = ("Recorder",)

logger = logging.getLogger("asyncinfer")

#: percentiles are taken over about this many of the last finished tasks
RECENT = 4096


class Recorder:
    """The counters of one dispatcher, and its events.

    Others add to some of the counters directly: this is done for every task, and a call would cost
    more than the addition.
    """

    def __init__(self, clock: Callable[[], float], on_event: EventHook | None) -> None:
        self.submitted = 0
        self.finished = 0
        self.failed = 0
        self.retried = 0
        self.quarantined = 0
        self.reorder_buffer = 0
        self.max_reorder = 0
        self.first_start = math.nan
        self.last_end = math.nan
        self.hold_sum = 0.0
        self.hold_max = 0.0
        #: latency, hold time and number of tasks of the spans that ended last; or the latency of
        #: each task, where several were answered at once
        self._recent: deque[tuple[float | list[float], float, int]] = deque()
        self._recent_tasks = 0
        self._clock = clock
        self._hook = on_event
        #: whether the hook has raised, which is logged once
        self._hook_failed = False

    def count_ended(self, spans: Sequence[Span], now: float) -> int:
        """Count tasks that became ready for their consumer at ``now``; return their number."""
        recent, before = self._recent, self.finished
        for span in spans:
            count, hold = span.count, now - span.run.finished
            self.finished += count
            self.hold_sum += hold * count
            if hold > self.hold_max:
                self.hold_max = hold
            recent.append((now - span.submitted, hold, count))
        ended = self.finished - before
        self._keep_recent(ended)
        return ended

    def count_at_once(self, latencies: list[float], started: float, ended: float) -> None:
        """Count tasks of ``infer`` that one device was given and answered in this time."""
        self.finished += len(latencies)
        self._recent.append((latencies, 0.0, len(latencies)))
        self._keep_recent(len(latencies))
        self.count_run(started, ended)

    def _keep_recent(self, more: int) -> None:
        """Forget the oldest of the recent tasks, as there are ``more``."""
        recent = self._recent
        self._recent_tasks += more
        while self._recent_tasks - recent[0][2] >= RECENT:
            self._recent_tasks -= recent.popleft()[2]

    def count_held(self, change: int) -> None:
        """The reorder buffers of all lanes together grew by ``change`` results."""
        self.reorder_buffer += change
        if self.reorder_buffer > self.max_reorder:
            self.max_reorder = self.reorder_buffer

    def count_run(self, started: float, ended: float) -> None:
        """A device ran tasks from ``started`` to ``ended``."""
        if not self.first_start <= started:
            self.first_start = started
        self.last_end = ended

    @property
    def elapsed(self) -> float:
        """Seconds from the start of the first task to the last end of one; 0 before any ended."""
        span = self.last_end - self.first_start
        return 0.0 if math.isnan(span) else span

    def latency(self, q: float) -> float:
        """The ``q`` quantile of the recent latencies, in seconds."""
        recent = (s if isinstance(s, list) else [s] * tasks for s, _, tasks in self._recent)
        return percentile(chain.from_iterable(recent), q)

    def hold(self, q: float) -> float:
        """The ``q`` quantile of the recent hold times, in seconds."""
        return percentile((s for _, s, tasks in self._recent for _ in range(tasks)), q)

    @property
    def observed(self) -> bool:
        """Whether there is an ``on_event`` to be called."""
        return self._hook is not None

    def device_event(
        self,
        kind: EventKind,
        device: str,
        error: BaseException | None = None,
        *,
        before: str = "",
        reason: str = "",
    ) -> None:
        """Report a device's change of state, as an event and in the log."""
        if error is None:
            logger.debug("%s %s %s", kind, device, reason)
        else:
            logger.warning("%s %s: %s", kind, device, error)
        self._emit(Event(kind, self._clock(), device, error=error, before=before, reason=reason))

    def task_event(self, kind: EventKind, span: Span, error: BaseException | None = None) -> None:
        """Report what happened to each task of ``span``."""
        if self._hook is not None:
            now, number = self._clock(), span.lane.number
            device, started, _ = span.run
            for index in range(span.first, span.first + span.count):
                self._emit(Event(kind, now, device, index, number, started, error))

    def finished_at_once(self, device: str, index: int, lane: int, started: float) -> None:
        """Report a result of a task of which no span was made."""
        self._emit(Event("task.finished", self._clock(), device, index, lane, started))

    def hedged(self, task: Span, device: str) -> None:
        """Report that a copy of a single task starts on ``device``."""
        now = self._clock()
        self._emit(Event("task.hedged", now, device, task.first, task.lane.number, now))

    def _emit(self, event: Event) -> None:
        if self._hook is None:
            return
        try:
            self._hook(event)
        except BaseException as error:  # whatever it is: it must not end the work it is told of
            if not self._hook_failed:
                self._hook_failed = True
                text = "on_event failed on %s; if it fails again, that is not logged"
                logger.exception(text, event.kind)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                asyncio.get_running_loop().call_soon(_exit, error)


def _exit(error: BaseException) -> NoReturn:
    """Raise ``error`` out of the event loop."""
    raise error
