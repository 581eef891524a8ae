"""Tasks on their way through the dispatcher: spans of tasks, rows of spans, and waiting tasks."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from asyncinfer._core.tasks.kept import strip
from asyncinfer.errors import TaskError

__all__ = ("NOT_RUN", "Row", "Run", "Span", "SpanHome", "Waiting")

#: most spans that a row gets by appending; a row with more than twice as many is split in two
SPANS_IN_A_ROW = 64


class SpanHome(Protocol):
    """What others need of the lane that a span belongs to."""

    #: the number of the lane, from 0
    number: int
    #: whether results are delivered in order
    ordered: bool
    #: the index of the next result to become ready
    head: int
    #: the ``contextvars`` context in which the stream was made
    context: contextvars.Context
    #: whether a task's time counts from its turn: see ``Front``; else from its call
    by_turn: bool

    @property
    def waiting(self) -> Waiting:
        """The tasks that may be started."""
        ...

    def finish(self, spans: list[Span]) -> None:
        """Take in ``spans``, which have results or errors."""
        ...

    def put_back(self, spans: list[Span]) -> None:
        """Let ``spans``, which were taken and not started, wait again."""
        ...

    def withdraw(self, span: Span) -> None:
        """Take ``span`` out of the waiting ones, if it is there."""
        ...

    def got_on(self, now: float) -> None:
        """A device was given tasks, or some ran too long. Told only where there is a limit."""
        ...


class Run(NamedTuple):
    """One attempt, shared by the tasks that were run together. Seconds on the loop's clock."""

    device: str
    started: float
    finished: float


NOT_RUN = Run("", math.nan, math.nan)


class Span:
    """Consecutive tasks of one stream to which the same has happened so far.

    Most tasks share everything from acceptance to delivery. So what would be done for each task is
    done once for a span, which costs less. A span is split when something happens to a part of it.
    A task that failed, or that has a caller of its own, is a span of one: a "single task".
    """

    __slots__ = (
        "causes",
        "context",
        "copied",
        "count",
        "devices",
        "done",
        "error",
        "first",
        "future",
        "inputs",
        "lane",
        "outputs",
        "run",
        "since",
        "spared",
        "submitted",
    )

    def __init__(self, lane: SpanHome, first: int, inputs: list[Any], submitted: float) -> None:
        self.lane = lane
        #: the index in the stream of the span's first task
        self.first = first
        #: the number of tasks
        self.count = len(inputs)
        #: one input for each task, forgotten once the tasks are done
        self.inputs = inputs
        #: when the tasks were accepted, in seconds on the loop's clock
        self.submitted = submitted
        #: from when time limits count: a call of ``infer`` from its beginning; a stream's task from
        #: when it came into the window, or from its first attempt once that has ended
        self.since = submitted
        #: one output for each task; of a single task that failed, its error
        self.outputs: list[Any] = []
        #: whether the outcome is known, or nobody wants to know it any more
        self.done = False
        #: the last attempt to run the tasks
        self.run = NOT_RUN
        #: single tasks only: the error of each failed attempt
        self.causes: tuple[BaseException, ...] = ()
        #: single tasks only: the device of each failed attempt
        self.devices: tuple[str, ...] = ()
        #: single tasks only: the error that the task ended with
        self.error: TaskError | None = None
        #: whether a copy was started, so that the task may be in two bursts
        self.copied = False
        #: how many of ``causes`` cost no attempt, as the task or its copy went on elsewhere
        self.spared = 0
        #: tasks of ``infer`` only: where the answer goes
        self.future: asyncio.Future[Any] | None = None
        #: tasks of ``infer`` only: the caller's ``contextvars`` context
        self.context: contextvars.Context | None = None

    def split(self, count: int) -> Span:
        """Remove the first ``count`` tasks, and return them as a span."""
        head = self._part(0, count)
        self.first += count
        self.count -= count
        del self.inputs[:count]
        del self.outputs[:count]
        return head

    def singles(self) -> list[Span]:
        """Each task as a span of its own; use these instead of this span from then on."""
        if self.count == 1:
            return [self]
        return [self._part(offset, 1) for offset in range(self.count)]

    def _part(self, offset: int, count: int) -> Span:
        end = offset + count
        part = Span(self.lane, self.first + offset, self.inputs[offset:end], self.submitted)
        part.count = count
        part.since = self.since
        part.outputs = self.outputs[offset:end]
        part.done = self.done
        part.run = self.run
        return part

    @property
    def attempts(self) -> int:
        """How many attempts came to an end.

        An attempt that was lost with its device while the task went on elsewhere does not count.
        """
        return len(self.causes) - self.spared + (self.done and self.error is None)

    def settle(self) -> None:
        """The outcome is known, or nobody wants to know it: forget the inputs."""
        self.done = True
        self.inputs.clear()

    def interrupted(self, run: Run) -> None:
        """Note that ``run`` has ended and brought no result."""
        if self.lane.by_turn:  # a copy may have failed before the call that began first
            self.since = run.started if self.run is NOT_RUN else min(self.since, run.started)
        self.run = run

    def attempt_failed(self, cause: BaseException, run: Run) -> None:
        """Note that an attempt to run this single task has failed."""
        strip(cause)
        self.interrupted(run)
        self.causes = (*self.causes, cause)
        self.devices = (*self.devices, run.device)

    def fail(self, now: float, kind: type[TaskError] = TaskError, message: str = "") -> None:
        """End this single task with an error of class ``kind``, made of what its attempts met."""
        self.run = self.run._replace(finished=now)
        self.error = kind(self.first, self.attempts, self.causes, self.devices, message)
        self.outputs = [self.error]


class Row:
    """Spans in the order of their stream. Its length is the number of tasks."""

    __slots__ = ("_indices", "_spans", "tasks")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = deque(spans)
        self._indices: list[int] | None = None
        #: the number of tasks
        self.tasks = 0
        for span in self._spans:
            self.tasks += span.count

    def __len__(self) -> int:
        return self.tasks

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def index(self, offset: int) -> int:
        """Index in the stream of the task at ``offset``."""
        if self._indices is None:
            spans = self._spans
            self._indices = [i for s in spans for i in range(s.first, s.first + s.count)]
        return self._indices[offset]

    def append(self, span: Span) -> None:
        """Put ``span`` at the end."""
        self._spans.append(span)
        self.tasks += span.count
        self._indices = None

    def take(self, count: int, offset: int = 0) -> list[Span]:
        """Remove and return ``count`` tasks from ``offset`` on, or as many as there are."""
        if offset:
            before = self._cut(offset)
            self._spans.rotate(-before)
            taken = self.take(min(count, self.tasks - offset))
            self._spans.rotate(before)
            return taken
        spans, taken = self._spans, []
        self._indices = None
        while count > 0 and spans:
            span = spans.popleft() if spans[0].count <= count else spans[0].split(count)
            count -= span.count
            self.tasks -= span.count
            taken.append(span)
        return taken

    def _cut(self, offset: int) -> int:
        """Split a span so that one begins at ``offset``; return how many spans come before."""
        spans, before = self._spans, 0
        for span in spans:
            if offset < span.count:
                break
            offset -= span.count
            before += 1
        if offset and before < len(spans):
            spans.insert(before, spans[before].split(offset))
            before += 1
        return before

    @property
    def spans(self) -> int:
        """The number of spans."""
        return len(self._spans)

    def halve(self) -> Row:
        """Remove the second half of the spans, and return it."""
        half = len(self._spans) // 2
        second = Row(islice(self._spans, half, None))
        while len(self._spans) > half:
            self._spans.pop()
        self.tasks -= second.tasks
        self._indices = None
        return second

    def singles(self, count: int) -> list[Span]:
        """Make each of the first ``count`` tasks a span of its own; return these. All stay here."""
        tasks = [task for span in self.take(count) for task in span.singles()]
        self._spans.extendleft(reversed(tasks))
        self.tasks += len(tasks)
        return tasks

    def merge(self, spans: list[Span]) -> None:
        """Insert ``spans`` at their places in the order."""
        merged = sorted((*spans, *self._spans), key=_first)
        self.clear()
        for span in merged:
            self.append(span)

    def remove(self, span: Span) -> None:
        """Take ``span`` out, if it is there."""
        if span in self._spans:
            self._spans.remove(span)
            self.tasks -= span.count
            self._indices = None

    def clear(self) -> list[Span]:
        """Remove and return all spans."""
        return self.take(self.tasks)


class Waiting:
    """The waiting tasks of a lane: spans in the order of their stream, kept in several rows.

    Many devices that each skip thousands of tasks leave as many spans as there are devices. With
    rows of limited length, a task far from the front is found without a look at every span.
    """

    __slots__ = ("_rows", "tasks")

    def __init__(self) -> None:
        self._rows: list[Row] = []
        #: the number of tasks
        self.tasks = 0

    def __len__(self) -> int:
        return self.tasks

    def __iter__(self) -> Iterator[Span]:
        return chain.from_iterable(self._rows)

    def index(self, offset: int) -> int:
        """Index in the stream of the task at ``offset``."""
        at, offset = self._find(offset)
        return self._rows[at].index(offset)

    def append(self, span: Span) -> None:
        """Put ``span`` at the end."""
        if not self._rows or self._rows[-1].spans >= SPANS_IN_A_ROW:
            self._rows.append(Row())
        self._rows[-1].append(span)
        self.tasks += span.count

    def take(self, count: int, offset: int = 0) -> list[Span]:
        """Remove and return ``count`` tasks from ``offset`` on, or as many as there are."""
        at, offset = self._find(offset) if offset else (0, 0)
        taken: list[Span] = []
        count = min(count, self.tasks)
        while count > 0 and at < len(self._rows):
            row = self._rows[at]
            before = row.tasks
            taken += row.take(count, offset)
            count -= before - row.tasks
            self.tasks -= before - row.tasks
            offset = 0
            if not row.tasks:
                del self._rows[at]
                continue
            if row.spans > 2 * SPANS_IN_A_ROW:
                self._rows.insert(at + 1, row.halve())
                at += 1
            at += 1
        return taken

    def _find(self, offset: int) -> tuple[int, int]:
        """The number of the row in which the task at ``offset`` is, and its offset in that row."""
        at = 0
        for at, row in enumerate(self._rows):  # noqa: B007  # the last one, if there is no such task
            if offset < row.tasks:
                break
            offset -= row.tasks
        else:
            at += 1
        return at, offset

    def merge(self, spans: list[Span]) -> None:
        """Insert ``spans`` at their places in the order."""
        row = Row(self)
        row.merge(spans)
        self.clear()
        for span in row:
            self.append(span)

    def remove(self, span: Span) -> None:
        """Take ``span`` out, if it is there."""
        for at, row in enumerate(self._rows):
            before = row.tasks
            row.remove(span)
            if row.tasks < before:
                self.tasks -= span.count
                if not row.tasks:
                    del self._rows[at]
                return

    def clear(self) -> list[Span]:
        """Remove and return all spans."""
        spans = list(self)
        self._rows.clear()
        self.tasks = 0
        return spans


def _first(span: Span) -> int:
    return span.first
