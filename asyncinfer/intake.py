"""From a source to the dispatcher: a bounded asyncio.Queue, read no further ahead than it holds."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from asyncinfer.task import Task

__all__ = ("Intake", "feed")

#: most inputs read from a synchronous source before the event loop gets a turn
BURST = 64
#: seconds after which a slow synchronous source gives the event loop a turn
TURN = 0.001


class Intake(asyncio.Queue[list[Task]]):
    """A queue of bursts of tasks whose size and limit count tasks."""

    def _init(self, maxsize: int) -> None:
        self._queue: deque[list[Task]] = deque()
        self._tasks = 0
        self._roomy = asyncio.Event()

    def qsize(self) -> int:
        """Number of tasks queued."""
        return self._tasks

    def _put(self, item: list[Task]) -> None:
        self._queue.append(item)
        self._tasks += len(item)

    def _get(self) -> list[Task]:
        burst = self._queue.popleft()
        self._tasks -= len(burst)
        self._roomy.set()
        return burst

    def take(self, most: int) -> list[Task]:
        """The next burst, at most ``most`` tasks of it. Raises ``QueueEmpty`` if there is none."""
        burst = self.get_nowait()
        if len(burst) > most:
            self._queue.appendleft(burst[most:])
            self._tasks += len(burst) - most
            del burst[most:]
        return burst

    async def room(self) -> int:
        """Wait until not full; return how many tasks fit."""
        while self.full():
            self._roomy.clear()
            await self._roomy.wait()
        return self.maxsize - self.qsize()


async def feed(
    source: Iterable[Any] | AsyncIterable[Any],
    intake: Intake,
    accept: Callable[[list[Any]], list[Task]],
    clock: Callable[[], float],
) -> None:
    """Read ``source`` to its end into ``intake``, waiting for room before each read.

    ``accept`` turns inputs into tasks. A generator is closed when the reading stops early.
    """
    try:
        if isinstance(source, AsyncIterable):
            await _feed_async(aiter(source), intake, accept)
        else:
            await _feed_sync(iter(source), intake, accept, clock)
    finally:
        if inspect.isasyncgen(source):
            await source.aclose()
        elif inspect.isgenerator(source):
            source.close()


async def _feed_async(
    source: AsyncIterator[Any], intake: Intake, accept: Callable[[list[Any]], list[Task]]
) -> None:
    while True:
        await intake.room()
        try:
            item = await anext(source)
        except StopAsyncIteration:
            return
        intake.put_nowait(accept([item]))


async def _feed_sync(
    source: Iterator[Any],
    intake: Intake,
    accept: Callable[[list[Any]], list[Task]],
    clock: Callable[[], float],
) -> None:
    more = True
    while more:
        room = await intake.room()
        items: list[Any] = []
        try:
            more = _read(source, items, min(room, BURST), clock)
        finally:
            if items:
                intake.put_nowait(accept(items))
        await asyncio.sleep(0)


def _read(source: Iterator[Any], items: list[Any], most: int, clock: Callable[[], float]) -> bool:
    """Append up to ``most`` inputs, for a turn's time; tell whether there may be more."""
    until = clock() + TURN
    for item in source:
        items.append(item)
        if len(items) >= most or clock() > until:
            return True
    return False
