"""The tasks that wait inside a window, of which any may be taken."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from asyncinfer.span import Row, Span

__all__ = ("Waiting",)

#: spans in one row; twice as many are made two rows of
SPANS = 64


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
        if not self._rows or self._rows[-1].spans >= SPANS:
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
            if row.spans > 2 * SPANS:
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
