"""How far a source may be read ahead of the devices: so many tasks, and so many bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sized

from asyncinfer._core.tasks.intake import Intake
from asyncinfer._core.tasks.size import TASK_BYTES

__all__ = ("ReadAhead",)


class ReadAhead:
    """What was read of one source and no device was given yet, in bytes, and the limit on it.

    Nothing is stored for a task: what was read at once is taken to leave in equal parts, and what
    was read first to leave first.
    """

    def __init__(self, intake: Intake, waiting: Sized, limit: float) -> None:
        self._intake = intake
        self._waiting = waiting
        self._limit = limit
        #: numbers of tasks that were read at once, with their bytes
        self._parts: deque[tuple[int, float]] = deque()
        self._tasks = 0
        self._bytes = 0.0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether nothing may be read now."""
        return self._intake.full() or self.left <= 0

    @property
    def left(self) -> float:
        """How many more bytes may be read; the last input may be larger."""
        leave = self._tasks - self._intake.tasks - len(self._waiting)
        while leave > 0:
            tasks, size = self._parts.popleft()
            gone = min(tasks, leave)
            if gone < tasks:
                self._parts.appendleft((tasks - gone, size - size * gone / tasks))
                size *= gone / tasks
            self._tasks -= gone
            self._bytes -= size
            leave -= gone
        return self._limit - (self._bytes if self._tasks else 0.0)

    def add(self, tasks: int, size: int) -> None:
        """Note that so many tasks were read, with ``size`` bytes of data."""
        size += tasks * TASK_BYTES
        self._parts.append((tasks, size))
        self._tasks += tasks
        self._bytes = size if self._tasks == tasks else self._bytes + size

    async def room(self) -> int:
        """Wait until something may be read; return how many tasks at most."""
        while True:
            tasks = await self._intake.room()
            if self.left > 0:
                return tasks
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def look(self) -> None:
        """Devices may have been given tasks: go on if that makes room."""
        if self._waiter is not None and not self._waiter.done() and self.left > 0:
            self._waiter.set_result(None)
