"""Counts what happens, and tells the observer."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence

from asyncinfer.events import Event, EventHook, EventKind
from asyncinfer.stats import percentile
from asyncinfer.task import Task

__all__ = ("Recorder",)

logger = logging.getLogger("asyncinfer")

#: finished tasks over which percentiles are taken
RECENT = 4096


class Recorder:
    """Counters of one dispatcher; plain additions, so that the hot path can afford them."""

    def __init__(self, clock: Callable[[], float], on_event: EventHook | None) -> None:
        self.submitted = 0
        self.finished = 0
        self.failed = 0
        self.retried = 0
        self.dropped = 0
        self.reorder_buffer = 0
        self.max_reorder = 0
        self.first_start = math.nan
        self.last_end = math.nan
        self.hold_sum = 0.0
        self.hold_max = 0.0
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._holds: deque[float] = deque(maxlen=RECENT)
        self._clock = clock
        self._hook = on_event

    @property
    def unfinished(self) -> int:
        """Tasks accepted that have not ended."""
        return self.submitted - self.finished - self.dropped

    def ended(self, tasks: Sequence[Task], now: float) -> None:
        """Tasks became ready for their consumer at ``now``."""
        self.finished += len(tasks)
        holds = [now - task.run.finished for task in tasks]
        self._holds.extend(holds)
        self._latencies.extend([now - task.submitted for task in tasks])
        self.hold_sum += sum(holds)
        self.hold_max = max(self.hold_max, *holds)

    def held(self, change: int) -> None:
        """The reorder buffers grew by ``change`` results."""
        self.reorder_buffer += change
        if self.reorder_buffer > self.max_reorder:
            self.max_reorder = self.reorder_buffer

    def ran(self, started: float, ended: float) -> None:
        """A call took from ``started`` to ``ended``."""
        if not self.first_start <= started:
            self.first_start = started
        self.last_end = ended

    @property
    def elapsed(self) -> float:
        """Seconds from the first start to the last end; 0 before there was one."""
        span = self.last_end - self.first_start
        return 0.0 if math.isnan(span) else span

    def latency(self, q: float) -> float:
        """The ``q`` quantile of the recent latencies, in seconds."""
        return percentile(self._latencies, q)

    def hold(self, q: float) -> float:
        """The ``q`` quantile of the recent hold times, in seconds."""
        return percentile(self._holds, q)

    @property
    def observed(self) -> bool:
        """Whether anybody listens to events."""
        return self._hook is not None

    def device_event(
        self, kind: EventKind, device: str, error: BaseException | None = None
    ) -> None:
        """Tell of a device's change of state, in the log too."""
        if error is None:
            logger.debug("%s %s", kind, device)
        else:
            logger.warning("%s: %s", kind, error)
        self._emit(Event(kind, self._clock(), device, error=error))

    def task_event(self, kind: EventKind, task: Task, error: BaseException | None = None) -> None:
        """Tell what happened to a task."""
        if self._hook is not None:
            now = self._clock()
            number = task.lane.number
            device, started, _ = task.run
            self._emit(Event(kind, now, device, task.index, number, started, error))

    def _emit(self, event: Event) -> None:
        if self._hook is None:
            return
        try:
            self._hook(event)
        except Exception:
            logger.exception("on_event failed on %s", event.kind)
