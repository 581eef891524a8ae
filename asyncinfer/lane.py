"""The tasks of one stream: queued, waiting inside the window, running, held, ready."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from asyncinfer.intake import Intake
from asyncinfer.recorder import Recorder
from asyncinfer.task import Task

__all__ = ("CallLane", "Lane")

#: results a consumer may take before the window is moved on, if more are ready
REFILL = 64


class Lane:
    """One stream inside the dispatcher.

    A task goes from the intake queue into the window (``waiting``) when its index is below
    head + window, to a device, and at its end into the reorder buffer (``slots``, shared with
    the tasks not finished yet) and, once all earlier ones are there, into ``ready``.
    """

    #: whether consecutive tasks share one context, so that a burst may run in it
    one_context = True

    def __init__(
        self,
        number: int,
        recorder: Recorder,
        clock: Callable[[], float],
        *,
        window: int,
        queue_size: int,
        ordered: bool = True,
    ) -> None:
        self.number = number
        self.ordered = ordered
        self.window: float = window
        self.context = contextvars.copy_context()
        self.intake = Intake(queue_size)
        self.waiting: deque[Task] = deque()
        self.slots: deque[Task] = deque()
        self.ready: deque[Task] = deque()
        self.accepted = 0
        self.admitted = 0
        self.delivered = 0
        self.held = 0
        #: count of delivered results at which the window is to be moved on
        self.refill_at: float = 0
        #: no task will be accepted any more
        self.ended = False
        #: what stopped the source before its end, told to the consumer after the last result
        self.source_error: BaseException | None = None
        #: nobody wants the results any more
        self.closed = False
        self._recorder = recorder
        self._clock = clock
        self._consumer: asyncio.Future[None] | None = None

    # ---- from the source into the window

    def accept(self, inputs: list[Any]) -> list[Task]:
        """Number the inputs and make tasks of them."""
        now = self._clock()
        first = self.accepted
        self.accepted += len(inputs)
        self._recorder.submitted += len(inputs)
        return [Task(self, i, x, now) for i, x in enumerate(inputs, first)]

    def end(self, error: BaseException | None = None) -> None:
        """Accept no more; wake the consumer, who may have been waiting for more."""
        self.ended = True
        if not self.closed:
            self.source_error = self.source_error or error
        self._wake()

    def lift_window(self) -> None:
        """Let everything accepted start: used when draining, where no more comes in."""
        self.window = math.inf

    def admit(self) -> None:
        """Move queued tasks into the window as far as it reaches."""
        room = self.window - (self.admitted - self.delivered)
        while room > 0 and not self.intake.empty():
            burst = self.intake.take(int(min(room, self.intake.qsize())))
            self.admitted += len(burst)
            room -= len(burst)
            if self.ordered:
                self.slots.extend(burst)
            alive = [task for task in burst if not task.done]
            self.waiting.extend(alive)
            if self.ordered and len(alive) < len(burst):  # some ran out of time in the queue
                self._flush(0)

    # ---- waiting tasks

    def take(self, offset: int, count: int) -> list[Task]:
        """Remove and return ``count`` waiting tasks from ``offset`` on."""
        waiting = self.waiting
        if offset:
            waiting.rotate(-offset)
        count = min(count, len(waiting) - offset)
        tasks = [waiting.popleft() for _ in range(count)]
        if offset:
            waiting.rotate(offset)
        return tasks

    def give_back(self, tasks: list[Task]) -> None:
        """Return tasks that were taken and not started; they keep their place in the order."""
        tasks = [task for task in tasks if not task.done]
        if self.closed or not tasks:
            return
        merged = sorted((*tasks, *self.waiting), key=_index)
        self.waiting.clear()
        self.waiting.extend(merged)

    # ---- finished tasks

    def finish(self, tasks: list[Task]) -> None:
        """Take the results or errors of ``tasks``, and deliver what is now in order."""
        for task in tasks:
            task.done = True
            task.input = None
        if self.closed:
            return
        if self.ordered:
            self._flush(len(tasks))
        else:
            self._recorder.ended(tasks, self._clock())
            self._deliver(tasks)

    def _flush(self, more: int) -> None:
        """Deliver what is in order, now that ``more`` tasks are done."""
        slots, ready = self.slots, []
        while slots and slots[0].done:
            ready.append(slots.popleft())
        self._hold(more - len(ready))
        if ready:
            self._recorder.ended(ready, self._clock())
            self._deliver(ready)

    def _hold(self, change: int) -> None:
        self.held += change
        self._recorder.held(change)

    def _deliver(self, tasks: list[Task]) -> None:
        self.ready.extend(tasks)
        self._wake()

    def discard(self, task: Task) -> None:
        """Its caller is gone: forget a task of an unordered lane."""
        task.done = True
        task.input = None
        self.delivered += 1
        self._recorder.dropped += 1
        self.withdraw(task)

    def withdraw(self, task: Task) -> None:
        """Take ``task`` out of the waiting ones, if it is there."""
        if task in self.waiting:
            self.waiting.remove(task)

    # ---- the consumer

    @property
    def exhausted(self) -> bool:
        """Whether the consumer has had everything it will get."""
        return self.ended and self.delivered == self.accepted

    @property
    def finished(self) -> bool:
        """Whether all it accepted has ended, and it accepts no more."""
        waiting = self.waiting or not self.intake.empty()
        return self.ended and not waiting and self.delivered + len(self.ready) == self.accepted

    async def results_ready(self) -> None:
        """Wait until a result is ready or no more will come."""
        if self._consumer is not None:
            raise RuntimeError("this stream is already being read by another task")
        self._consumer = asyncio.get_running_loop().create_future()
        try:
            await self._consumer
        finally:
            self._consumer = None

    def _wake(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)

    def move_on(self) -> None:
        """Set when, if results stay ready, the window is next to be moved on."""
        self.refill_at = self.delivered + min(REFILL, self.window / 4)

    def close(self) -> list[Task]:
        """Forget everything; return the tasks that had been accepted and not finished."""
        if self.closed:
            return []
        dropped = [*self.waiting, *(task for task in self.slots if not task.done)]
        while not self.intake.empty():
            dropped.extend(self.intake.take(self.intake.qsize()))
        self._recorder.dropped += self.held
        self._hold(-self.held)
        self.closed = self.ended = True
        self.waiting.clear()
        self.slots.clear()
        self.ready.clear()
        self._wake()
        return list(dict.fromkeys(dropped))


class CallLane(Lane):
    """The lane of ``infer``: each task answers its caller, in the caller's own context."""

    one_context = False

    def _deliver(self, tasks: list[Task]) -> None:
        self.delivered += len(tasks)
        for task in tasks:
            future = task.future
            if future is None or future.done():
                continue
            if task.error is not None:
                future.set_exception(task.error)
            else:
                future.set_result(task.value)


def _index(task: Task) -> int:
    return task.index
