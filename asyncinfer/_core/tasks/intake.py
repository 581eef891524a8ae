"""The queue between a source and the window: an asyncio.Queue of spans, with a limit in tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any

from asyncinfer._core.tasks.spans import Span

__all__ = ("Intake",)


class Intake(asyncio.Queue[Span]):
    """A queue of spans. Its size and its limit count tasks, not spans."""

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Span] = deque()
        #: number of tasks queued
        self.tasks = 0
        #: one future for each coroutine that waits for room, the longest waiting first
        self._turns: deque[asyncio.Future[None]] = deque()
        #: how many of them were told that there is room and have not run since
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

    def add(self, span: Span) -> None:
        """Append ``span``, even if the queue is full."""
        self._put(span)

    def extend(self, inputs: list[Any], since: float) -> bool:
        """Append ``inputs`` to the last span, unless that was accepted before ``since``.

        Returns whether they were appended.
        """
        last = self._queue[-1] if self._queue else None
        if last is None or last.done or last.submitted < since:
            return False
        last.inputs += inputs
        last.count += len(inputs)
        self.tasks += len(inputs)
        return True

    def take(self, most: int) -> Span:
        """Remove and return the next span, or its first ``most`` tasks if it has more.

        Raises ``QueueEmpty`` if there is none.
        """
        span = self.get_nowait()
        if span.count <= most:
            return span
        head = span.split(most)
        self._queue.appendleft(span)
        self.tasks += span.count
        return head

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for room, or was told of some and has not come yet."""
        return bool(self._turns or self._called)

    async def room(self) -> int:
        """Wait until the queue is not full; return how many tasks fit."""
        wait = self._turns.append
        while self.full():
            turn = asyncio.get_running_loop().create_future()
            wait(turn)
            try:
                await turn
            finally:  # one that was told of room and is cancelled leaves that room to the next
                self._called -= turn.done() and not turn.cancelled()
                self._call()
            wait = self._turns.appendleft  # somebody else took the room: wait in the first place
        return self.maxsize - self.qsize()

    def _call(self) -> None:
        """Wake as many of those who wait as there is room for, not all of them."""
        while self._turns and self._called < self.maxsize - self.tasks:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                self._called += 1
