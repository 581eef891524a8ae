"""Tasks on their way through the dispatcher: spans of them, rows of spans, and those that wait."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from asyncinfer.errors import TaskError

__all__ = ("NOT_RUN", "Row", "Run", "Span", "SpanHome", "Waiting")

#: spans in one row; twice as many are made two rows of
SPANS_IN_A_ROW = 64


class SpanHome(Protocol):
    """What a span needs of the lane it belongs to."""

    number: int
    #: whether results are delivered in order, and the index of the next one to be
    ordered: bool
    head: int
    #: that of the stream's consumer when it began
    context: contextvars.Context

    def finish(self, spans: list[Span]) -> None:
        """Take the results or errors of some of its tasks."""
        ...

    def put_back(self, spans: list[Span]) -> None:
        """Take back tasks that were not started."""
        ...

    def withdraw(self, span: Span) -> None:
        """Take ``span`` out of the waiting ones, if it is there."""
        ...


class Run(NamedTuple):
    """One attempt, shared by the tasks that were run together. Seconds on the loop's clock."""

    device: str
    started: float
    finished: float


NOT_RUN = Run("", math.nan, math.nan)


class Span:
    """Consecutive tasks of one stream that have shared everything so far, as most do to the end.

    What would be done for every task is done for a span of them instead. It is split where their
    ways part; a task that failed, or that has a caller of its own, is a span of one.
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
        "spared",
        "submitted",
    )

    def __init__(self, lane: SpanHome, first: int, inputs: list[Any], submitted: float) -> None:
        self.lane = lane
        #: index of its first task in the stream, and number of tasks
        self.first = first
        self.count = len(inputs)
        #: one for each task, forgotten once they are done
        self.inputs = inputs
        self.submitted = submitted
        #: one for each task, or the error a single one ended with
        self.outputs: list[Any] = []
        self.done = False
        #: the last attempt
        self.run = NOT_RUN
        #: of a single task: what failed attempts met, and where, and what that came to
        self.causes: tuple[BaseException, ...] = ()
        self.devices: tuple[str, ...] = ()
        self.error: TaskError | None = None
        #: whether a copy of it was started, which is allowed to fail beside it
        self.copied = False
        #: how many of its causes cost no attempt: the other call of a task and its copy went on
        self.spared = 0
        #: of a task of ``infer``: where the answer goes, and the caller's context
        self.future: asyncio.Future[Any] | None = None
        self.context: contextvars.Context | None = None

    def split(self, count: int) -> Span:
        """Remove the first ``count`` tasks, and return them."""
        head = self._part(0, count)
        self.first += count
        self.count -= count
        del self.inputs[:count]
        del self.outputs[:count]
        return head

    def singles(self) -> list[Span]:
        """Each task as a span of its own, to be used in the place of this one."""
        if self.count == 1:
            return [self]
        return [self._part(offset, 1) for offset in range(self.count)]

    def _part(self, offset: int, count: int) -> Span:
        end = offset + count
        part = Span(self.lane, self.first + offset, self.inputs[offset:end], self.submitted)
        part.count = count
        part.outputs = self.outputs[offset:end]
        part.done = self.done
        part.run = self.run
        return part

    @property
    def attempts(self) -> int:
        """How often it was run to an end; a device lost beside its copy does not count."""
        return len(self.causes) - self.spared + (self.done and self.error is None)

    def settle(self) -> None:
        """Its outcome is known, or nobody asks for it."""
        self.done = True
        self.inputs.clear()

    def attempt_failed(self, cause: BaseException, run: Run) -> None:
        """Remember a failed attempt of a single task."""
        self.run = run
        self.causes = (*self.causes, cause)
        self.devices = (*self.devices, run.device)

    def fail(self, now: float, kind: type[TaskError] = TaskError, message: str = "") -> None:
        """Make the error a single task ends with out of what it met."""
        self.run = self.run._replace(finished=now)
        self.error = kind(self.first, self.attempts, self.causes, self.devices, message)
        self.outputs = [self.error]


class Row:
    """Spans in the order of their stream. Its length is the number of tasks."""

    __slots__ = ("_indices", "_spans", "tasks")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = deque(spans)
        self._indices: list[int] | None = None
        #: how many there are
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
        """Let a span begin at ``offset``; return how many are before it."""
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
        """How many spans there are."""
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
        """Let each of the first ``count`` tasks be a span of its own; return those."""
        tasks = [task for span in self.take(count) for task in span.singles()]
        self._spans.extendleft(reversed(tasks))
        self.tasks += len(tasks)
        return tasks

    def merge(self, spans: list[Span]) -> None:
        """Put ``spans`` where they belong."""
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
    """A row in several, so that tasks far from its front are found without a look at all before.

    Many devices that each skip thousands of tasks leave as many spans behind as there are devices.
    """

    __slots__ = ("_rows", "tasks")

    def __init__(self) -> None:
        self._rows: list[Row] = []
        #: how many there are
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
        """The row in which a task is, and its offset there."""
        at = 0
        for at, row in enumerate(self._rows):  # noqa: B007  # the last one, if there is no such task
            if offset < row.tasks:
                break
            offset -= row.tasks
        else:
            at += 1
        return at, offset

    def merge(self, spans: list[Span]) -> None:
        """Put ``spans`` where they belong."""
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
