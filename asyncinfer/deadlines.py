"""Ends tasks whose time has run out, with one timer for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from asyncinfer.task import Task

__all__ = ("Deadlines",)

#: settled tasks it keeps before it looks for them
KEPT = 1024


class Deadlines:
    """Watches tasks, all with the same time limit counted from their acceptance."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        settled: Callable[[Task], bool],
        expire: Callable[[Task], None],
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._loop = loop
        self._settled = settled
        self._expire = expire
        self._tasks: deque[Task] = deque()
        self._sweep_at = KEPT
        self._timer: asyncio.TimerHandle | None = None

    def add(self, tasks: Iterable[Task]) -> None:
        """Watch ``tasks``, accepted just now."""
        self._tasks.extend(tasks)
        if len(self._tasks) > self._sweep_at:  # so that memory follows the unfinished tasks only
            self._tasks = deque(task for task in self._tasks if not self._settled(task))
            self._sweep_at = max(KEPT, 2 * len(self._tasks))
        if self._timer is None and self._tasks:
            self._arm()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._tasks.clear()

    def _arm(self) -> None:
        due = self._tasks[0].submitted + self._seconds
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock()
        tasks = self._tasks
        while tasks and (self._settled(tasks[0]) or tasks[0].submitted + self._seconds <= now):
            task = tasks.popleft()
            if not self._settled(task):
                self._expire(task)
        if tasks:
            self._arm()
