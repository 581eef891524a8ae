"""The tasks of one stream: queued, waiting inside the window, running, finished early, ready."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from asyncinfer._core.tasks.ahead import ReadAhead
from asyncinfer._core.tasks.calls import Call, CallFlow, WaitingCalls
from asyncinfer._core.tasks.front import Front
from asyncinfer._core.tasks.intake import Intake
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer._core.tasks.spans import Span, Waiting
from asyncinfer._core.tasks.turns import PLAIN, Claim, Leaf, Turns

__all__ = ("CallLane", "Lane")

#: most results a consumer is handed at once; the window moves on after each such piece
PIECE = 128
#: tasks accepted within this many seconds are put into one span, as if accepted together
TOGETHER = 100e-6


class Lane:
    """One stream inside the dispatcher.

    A task waits in the ``intake`` queue until its index is below head + window. It then moves into
    ``waiting``, and from there to a device. Once finished it is among the ``early`` ones until all
    tasks before it have finished, and then in ``ready``. The consumer is handed what is ready, one
    ``piece`` at a time.
    """

    #: whether all tasks have the same ``contextvars`` context, so that they may share a span
    one_context = True
    #: whether a task's time counts from its turn; else from its call
    by_turn = True

    def __init__(
        self,
        number: int,
        recorder: Recorder,
        clock: Callable[[], float],
        *,
        window: int,
        queue_size: int,
        ordered: bool = True,
        claim: Claim = PLAIN,
    ) -> None:
        self.number = number
        self.ordered = ordered
        self.window: float = window
        self.context = contextvars.copy_context()
        self.intake = Intake(queue_size)
        self.waiting = Waiting()
        #: what it may claim of the devices, and its place among the others who do
        self.claim = claim
        self._turn = StreamTurn(number, self.waiting)
        self._turns: Turns | None = None
        #: which of its tasks is the next to be given to a device
        self.front = Front()
        #: finished spans that wait for an earlier one, by their first index
        self.early: dict[int, Span] = {}
        #: the index that is the next to become ready
        self.head = 0
        self.ready: deque[Span] = deque()
        #: the results that the consumer was handed and has not taken yet
        self.piece: Iterator[Any] = iter(())
        #: tasks that came from the source so far
        self.accepted = 0
        #: tasks that have left the intake for the window
        self.admitted = 0
        #: tasks that have ended and became ready, or that nobody wants any more
        self.ended_tasks = 0
        #: tasks the consumer has taken; a piece counts as one task until all of it is taken
        self.delivered = 0
        #: tasks in ``early``
        self.held = 0
        #: the source is exhausted or not read any further: no task will be accepted any more
        self.source_ended = False
        #: how far its source is read ahead; ``None`` if it has none, or is not read yet
        self.ahead: ReadAhead | None = None
        #: what stopped the source before its end; raised to the consumer after the last result
        self.source_error: BaseException | None = None
        #: whether nobody wants the results any more
        self.closed = False
        self._piece_size = max(1, min(PIECE, window // 4))
        #: tasks of the present piece that ``delivered`` does not count yet
        self._undelivered = 0
        self._recorder = recorder
        self._clock = clock
        self._consumer: asyncio.Future[None] | None = None

    # ---- from the source into the window

    def accept(self, inputs: list[Any]) -> Span:
        """Number the inputs, make tasks of them, and put these into the intake.

        Returns a span that begins with them. They may have become part of the last queued span.
        """
        span = Span(self, self.accepted, inputs, self._clock())
        self.accepted += span.count
        if self.by_turn and self.accepted - self.delivered > self.window:
            span.since = math.inf  # until it comes into the window
        self._recorder.submitted += span.count
        if not (self.one_context and self.intake.extend(inputs, span.submitted - TOGETHER)):
            self.intake.put_nowait(span)
        return span

    @property
    def places(self) -> Iterable[Iterable[Span]]:
        """Where its tasks wait that may be started; in each place the oldest comes first."""
        return (self.waiting,)

    def no_more(self, error: BaseException | None = None) -> None:
        """Note that no more tasks will come, because of ``error`` if there is one.

        Wakes the consumer, who may be waiting for more results.
        """
        self.source_ended = True
        if not self.closed:
            self.source_error = self.source_error or error
        self._wake()

    def lift_window(self) -> None:
        """Let every accepted task start. Used when draining, as no more tasks come then."""
        self.window = math.inf

    def admit(self) -> None:
        """Move queued tasks into the window as far as it reaches."""
        room = self.window - (self.admitted - self.delivered)
        if room <= 0 or not self.intake.tasks:
            return
        now = self._clock()
        while room > 0 and self.intake.tasks:
            span = self.intake.take(int(min(room, self.intake.tasks)))
            self.admitted += span.count
            room -= span.count
            if not span.done:  # done if it ran out of time while it was queued
                if span.since == math.inf:
                    span.since = now
                self.waiting.append(span)

    # ---- waiting tasks

    def take_turns(self, turns: Turns) -> None:
        """Take part from now on."""
        self._turns = turns
        turns.join(self._turn, self.claim)

    def take_no_turns(self) -> None:
        """Take part no more. Idempotent."""
        if self._turns is not None:
            self._turns.leave(self._turn)

    @property
    def only_turn(self) -> Leaf | None:
        """Whose all waiting tasks are; ``None`` if they are of several who take turns."""
        return self._turn

    def put_back(self, spans: list[Span]) -> None:
        """Put tasks that were taken and not started back to their place among the waiting ones."""
        spans = [span for span in spans if not span.done]
        if spans and not self.closed:
            self._put_back(spans)

    def _put_back(self, spans: list[Span]) -> None:
        self.waiting.merge(spans)
        if self._turns is not None:
            self._turns.returned(self._turn, sum(span.count for span in spans))

    def withdraw(self, span: Span) -> None:
        """Take ``span`` out of the waiting ones, if it is there."""
        self.waiting.remove(span)
        if self._turns is not None:
            self._turns.forget()

    def got_on(self, now: float) -> None:
        """A device was given tasks, or some ran too long. Told only where there is a limit."""
        self.front.got_on(now)

    # ---- finished tasks

    def finish(self, spans: list[Span]) -> None:
        """Take in ``spans``, which have results or errors, and deliver what is in order by now."""
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
        """Hold ``spans`` back until all before them have ended; return those now in order."""
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
        """Forget a task whose caller is gone. For unordered lanes only."""
        span.settle()
        self.delivered += span.count
        self.ended_tasks += span.count
        self.withdraw(span)

    # ---- the consumer

    @property
    def exhausted(self) -> bool:
        """Whether the consumer was handed every result it will ever get."""
        return self.finished and not self.ready

    @property
    def finished(self) -> bool:
        """Whether every accepted task has ended, and no more will come."""
        return self.source_ended and not self.unfinished

    @property
    def unfinished(self) -> int:
        """How many accepted tasks have not ended; 0 if nobody wants the results any more."""
        return 0 if self.closed else self.accepted - self.ended_tasks

    async def results_ready(self) -> None:
        """Wait until a result is ready, or no more will come."""
        if self._consumer is not None:
            raise RuntimeError("this stream is already being read by another task")
        self._consumer = asyncio.get_running_loop().create_future()
        try:
            await self._consumer
        except BaseException:
            self._consumer, self = None, None  # type: ignore[assignment]  # its frame may be kept
            raise
        self._consumer = None

    def _wake(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)

    def piece_used_up(self) -> None:
        """The consumer has taken its whole piece: count it as delivered; so the window moves on."""
        self.delivered += self._undelivered
        self._undelivered = 0

    def next_piece(self) -> list[Span]:
        """Remove and return the spans of the next piece; a failed task is a piece of its own."""
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
        """Return the error that the stream ends with, if there is one, and forget it."""
        error, self.source_error = self.source_error, None
        return error

    def close(self, error: BaseException | None = None) -> list[Span]:
        """Forget all tasks and results; return the spans that were queued or waiting.

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


class StreamTurn(Leaf):
    """The place of a stream among those who take turns."""

    __slots__ = ("_waiting",)

    def __init__(self, lane: int, waiting: Waiting) -> None:
        super().__init__(lane, waiting)
        self._waiting = waiting

    def take(self, count: int, offset: int = 0) -> list[Span]:
        """Remove and return ``count`` tasks from ``offset`` on, or as many as there are."""
        return self._waiting.take(count, offset)

    def index(self, offset: int) -> int:
        """Index in the stream of the task at ``offset``."""
        return self._waiting.index(offset)


class CallLane(Lane):
    """The lane of ``infer``: each task runs in its caller's context and answers that caller.

    There are several flows of calls in it, which take turns; no call waits for a window.
    """

    one_context = False
    by_turn = False

    def __init__(self, *args: Any, window: int, queue_size: int, **kwargs: Any) -> None:
        super().__init__(*args, window=window, queue_size=queue_size, **kwargs)
        most = window + queue_size  # as of a stream
        self.waiting: WaitingCalls = WaitingCalls(self.number, most, self._accept)

    def flow(self, claim: Claim) -> CallFlow:
        """Where calls with this claim wait."""
        return self.waiting.flow(claim)

    def _accept(self, flow: CallFlow, inputs: list[Any]) -> Call:
        call = Call(self, self.accepted, inputs, self._clock())
        call.flow = flow
        self.accepted += 1
        self.admitted += 1
        self._recorder.submitted += 1
        return call

    def turn_away(self, flow: CallFlow, since: float) -> Call:
        """Make a task that is to fail, as there was no room for it in ``flow`` since then."""
        call = self._accept(flow, [None])
        call.submitted = call.since = since
        return call

    @property
    def places(self) -> Iterable[Iterable[Span]]:
        """Where its tasks wait that may be started; in each place the oldest comes first."""
        return [flow.intake for flow in self.waiting.flows]

    def take_turns(self, turns: Turns) -> None:
        """Take part from now on."""
        self._turns = self.waiting.turns = turns

    def take_no_turns(self) -> None:
        """Take part no more. Idempotent."""

    @property
    def only_turn(self) -> Leaf | None:
        """Whose all waiting tasks are; ``None`` if they are of several who take turns."""
        return self.waiting.alone

    def _put_back(self, spans: list[Span]) -> None:
        self.waiting.merge(spans)

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
