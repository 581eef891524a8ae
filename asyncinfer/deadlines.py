"""Ends tasks whose time has run out, with one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable

from asyncinfer.span import Span

__all__ = ("Deadlines",)

#: shortest pause between two looks, in seconds: a timer may ring a little early
PAUSE = 1e-6


class Deadlines:
    """One time limit, counted from the acceptance of each task.

    Nothing is remembered of a task: the timer is set for the oldest one that the limit concerns,
    and when it rings, those are looked through.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        rows: Callable[[], Iterable[Iterable[Span]]],
        expire: Callable[[list[Span]], None],
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._loop = loop
        #: the tasks that the limit concerns, each row with the oldest first
        self._rows = rows
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, span: Span) -> None:
        """Watch the tasks of ``span``, accepted just now."""
        if self._timer is None:
            self._arm(span.submitted + self._seconds)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _arm(self, due: float) -> None:
        self._timer = self._loop.call_later(max(PAUSE, due - self._clock()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        overdue, due = self._look(self._clock())
        if overdue:
            self._expire(overdue)
        if due < math.inf:
            self._arm(due)

    def _look(self, now: float) -> tuple[list[Span], float]:
        """What is overdue, and when the next one will be."""
        overdue: list[Span] = []
        next_due = math.inf
        for row in self._rows():
            for span in row:
                if span.done:
                    continue
                due = span.submitted + self._seconds
                if due > now:
                    next_due = min(next_due, due)
                    break
                overdue.append(span)
        return overdue, next_due
