"""The tasks of one stream: queued, waiting inside the window, running, held, ready."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from asyncinfer._core.tasks.intake import Intake
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer._core.tasks.spans import Span, Waiting

__all__ = ("CallLane", "Lane")

#: most results handed to a consumer before the window is moved on
PIECE = 128
#: tasks accepted within so many seconds count as accepted together
TOGETHER = 100e-6


class Lane:
    """One stream inside the dispatcher.

    A task goes from the intake queue into the window (``waiting``) when its index is below
    head + window, to a device, and at its end among the ``early`` ones and, once all before it
    are there, into ``ready``. The consumer is handed what is ready a ``piece`` at a time.
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
        self.waiting = Waiting()
        #: finished spans by their first index, and the index that is the next to become ready
        self.early: dict[int, Span] = {}
        self.head = 0
        self.ready: deque[Span] = deque()
        #: what is left of the results that the consumer was handed
        self.piece: Iterator[Any] = iter(())
        self.accepted = 0
        self.admitted = 0
        #: tasks that have ended, and are ready if their consumer still wants them
        self.ended_tasks = 0
        #: tasks the consumer has taken; those of its present piece count as one until it is used up
        self.delivered = 0
        self.held = 0
        #: no task will be accepted any more
        self.source_ended = False
        #: what stopped the source before its end, told to the consumer after the last result
        self.source_error: BaseException | None = None
        #: nobody wants the results any more
        self.closed = False
        self._piece_size = max(1, min(PIECE, window // 4))
        self._undelivered = 0
        self._recorder = recorder
        self._clock = clock
        self._consumer: asyncio.Future[None] | None = None

    # ---- from the source into the window

    def accept(self, inputs: list[Any]) -> Span:
        """Number the inputs, make tasks of them, and queue those."""
        span = Span(self, self.accepted, inputs, self._clock())
        self.accepted += span.count
        self._recorder.submitted += span.count
        if not (self.one_context and self.intake.extend(inputs, span.submitted - TOGETHER)):
            self.intake.put_nowait(span)
        return span

    def no_more(self, error: BaseException | None = None) -> None:
        """Accept no more; wake the consumer, who may have been waiting for more."""
        self.source_ended = True
        if not self.closed:
            self.source_error = self.source_error or error
        self._wake()

    def lift_window(self) -> None:
        """Let everything accepted start: used when draining, where no more comes in."""
        self.window = math.inf

    def admit(self) -> None:
        """Move queued tasks into the window as far as it reaches."""
        room = self.window - (self.admitted - self.delivered)
        while room > 0 and self.intake.tasks:
            span = self.intake.take(int(min(room, self.intake.tasks)))
            self.admitted += span.count
            room -= span.count
            if not span.done:  # it ran out of time in the queue
                self.waiting.append(span)

    # ---- waiting tasks

    def put_back(self, spans: list[Span]) -> None:
        """Return tasks that were taken and not started; they keep their place in the order."""
        spans = [span for span in spans if not span.done]
        if spans and not self.closed:
            self.waiting.merge(spans)

    def withdraw(self, span: Span) -> None:
        """Take ``span`` out of the waiting ones, if it is there."""
        self.waiting.remove(span)

    # ---- finished tasks

    def finish(self, spans: list[Span]) -> None:
        """Take the results or errors of ``spans``, and deliver what is now in order."""
        for span in spans:
            span.settle()
        if self.closed:
            return
        if self.ordered:
            spans = self._in_order(spans)
        if spans:
            self.ended_tasks += self._recorder.count_ended(spans, self._clock())
            self._deliver(spans)

    def _in_order(self, spans: list[Span]) -> list[Span]:
        """Hold ``spans`` until all before them have ended; return those for which that is so."""
        early, ready, more = self.early, [], self.head
        for span in spans:
            early[span.first] = span
            more += span.count
        while self.head in early:
            span = early.pop(self.head)
            self.head += span.count
            ready.append(span)
        self._hold(more - self.head)
        return ready

    def _hold(self, change: int) -> None:
        self.held += change
        self._recorder.count_held(change)

    def _deliver(self, spans: list[Span]) -> None:
        self.ready.extend(spans)
        self._wake()

    def discard(self, span: Span) -> None:
        """Its caller is gone: forget a task of an unordered lane."""
        span.settle()
        self.delivered += span.count
        self.ended_tasks += span.count
        self.withdraw(span)

    # ---- the consumer

    @property
    def exhausted(self) -> bool:
        """Whether the consumer has had everything it will get."""
        return self.finished and not self.ready

    @property
    def finished(self) -> bool:
        """Whether all it accepted has ended, and it accepts no more."""
        return self.source_ended and not self.unfinished

    @property
    def unfinished(self) -> int:
        """Tasks accepted that have not ended; none that nobody waits for any more."""
        return 0 if self.closed else self.accepted - self.ended_tasks

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

    def piece_used_up(self) -> None:
        """The consumer has taken all of its piece: the window may move on."""
        self.delivered += self._undelivered
        self._undelivered = 0

    def next_piece(self) -> list[Span]:
        """Remove and return what the consumer is handed next; a failed task comes alone."""
        self.piece_used_up()
        ready, left = self.ready, self._piece_size
        piece: list[Span] = []
        while ready and left > 0 and not (piece and ready[0].error):
            span = ready.popleft() if ready[0].count <= left else ready[0].split(left)
            left -= span.count
            piece.append(span)
            if span.error:
                break
        self.delivered += 1
        self._undelivered = self._piece_size - left - 1
        return piece

    def take_error(self) -> BaseException | None:
        """The error the stream ends with, if there is one: the consumer is told of it once."""
        error, self.source_error = self.source_error, None
        return error

    def close(self, error: BaseException | None = None) -> list[Span]:
        """Forget everything; return the tasks that had been accepted and not finished.

        A consumer that still asks for results is told of ``error``, if there is one.
        """
        self.source_error = error or self.source_error
        if self.closed:
            return []
        dropped = self.waiting.clear()
        while self.intake.tasks:
            dropped.append(self.intake.take(self.intake.tasks))
        self._hold(-self.held)
        self.closed = self.source_ended = True
        self.early.clear()
        self.ready.clear()
        self.piece = iter(())
        self._wake()
        return dropped


class CallLane(Lane):
    """The lane of ``infer``: each task answers its caller, in the caller's own context."""

    one_context = False

    def _deliver(self, spans: list[Span]) -> None:
        self.delivered += len(spans)
        for span in spans:
            future = span.future
            if future is None or future.done():
                continue
            if span.error is not None:
                future.set_exception(span.error)
            else:
                future.set_result(span.outputs[0])
