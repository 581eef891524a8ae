"""The queue between a source and the window: an asyncio.Queue of spans, bounded in tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any

from asyncinfer._core.tasks.spans import Span

__all__ = ("Intake",)


class Intake(asyncio.Queue[Span]):
    """A queue of spans whose size and limit count tasks."""

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Span] = deque()
        #: number of tasks queued
        self.tasks = 0
        #: who waits for room, and how many were told of some and have not looked yet
        self._turns: deque[asyncio.Future[None]] = deque()
        self._called = 0

    def __iter__(self) -> Iterator[Span]:
        return iter(self._queue)

    def qsize(self) -> int:
        """Number of tasks queued."""
        return self.tasks

    def _put(self, item: Span) -> None:
        self._queue.append(item)
        self.tasks += item.count

    def _get(self) -> Span:
        span = self._queue.popleft()
        self.tasks -= span.count
        self._call()
        return span

    def extend(self, inputs: list[Any], since: float) -> bool:
        """Add ``inputs`` to the last span if that was accepted ``since`` then; tell whether."""
        last = self._queue[-1] if self._queue else None
        if last is None or last.done or last.submitted < since:
            return False
        last.inputs += inputs
        last.count += len(inputs)
        self.tasks += len(inputs)
        return True

    def take(self, most: int) -> Span:
        """The next span, at most ``most`` tasks of it. Raises ``QueueEmpty`` if there is none."""
        span = self.get_nowait()
        if span.count <= most:
            return span
        head = span.split(most)
        self._queue.appendleft(span)
        self.tasks += span.count
        return head

    async def room(self) -> int:
        """Wait until not full; return how many tasks fit."""
        wait = self._turns.append
        while self.full():
            turn = asyncio.get_running_loop().create_future()
            wait(turn)
            try:
                await turn
            finally:  # one that was called and does not come leaves its place to the next
                self._called -= turn.done() and not turn.cancelled()
                self._call()
            wait = self._turns.appendleft  # somebody else was quicker
        return self.maxsize - self.qsize()

    def _call(self) -> None:
        """Tell as many of those who wait as there is room for, not all."""
        while self._turns and self._called < self.maxsize - self.tasks:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                self._called += 1
