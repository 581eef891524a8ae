"""From a source to the dispatcher: a bounded asyncio.Queue, read no further ahead than it holds."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from asyncinfer.span import Span

__all__ = ("Intake", "feed")

#: most inputs read from a synchronous source in one turn of the event loop
BURST = 1024
#: most inputs read without a look at the clock
CHUNK = 64
#: seconds after which a slow synchronous source gives the event loop a turn
TURN = 0.0005


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


async def feed(
    source: Iterable[Any] | AsyncIterable[Any],
    intake: Intake,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    """Read ``source`` to its end, waiting for room in ``intake`` before each read.

    ``accept`` makes tasks of inputs and queues them there. A generator is closed when the reading
    stops early.
    """
    try:
        if isinstance(source, AsyncIterable):
            await _feed_async(aiter(source), intake, accept, clock)
        else:
            await _feed_sync(iter(source), intake, accept, clock)
    finally:
        if inspect.isasyncgen(source):
            await source.aclose()
        elif inspect.isgenerator(source):
            source.close()


async def _feed_async(
    source: AsyncIterator[Any],
    intake: Intake,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    until = clock() + TURN
    while True:
        await intake.room()
        try:
            item = await anext(source)
        except StopAsyncIteration:
            return
        accept([item])
        if clock() > until:  # it may never have let the event loop go
            await asyncio.sleep(0)
            until = clock() + TURN


async def _feed_sync(
    source: Iterator[Any],
    intake: Intake,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    read = _Reader(source, clock)
    while not read.ended:
        room = await intake.room()
        items: list[Any] = []
        try:
            read.some(items, min(room, BURST))
        finally:
            if items:
                accept(items)
        if not intake.full():  # else it waits for room
            await asyncio.sleep(0)


class _Reader:
    """Reads a synchronous source for a turn of the event loop at a time.

    Looking at the clock after every input would cost more than the input, so it is done after
    ever larger chunks, and after each input again once one was slow.
    """

    def __init__(self, source: Iterator[Any], clock: Callable[[], float]) -> None:
        self.ended = False
        self._source = source
        self._clock = clock
        self._chunk = 1

    def some(self, items: list[Any], most: int) -> None:
        """Append at least one input and at most ``most``, unless there are no more."""
        until = self._clock() + TURN
        while len(items) < most:
            goal = min(most, len(items) + self._chunk)
            items.extend(islice(self._source, goal - len(items)))
            self.ended = len(items) < goal
            if self._clock() > until:
                self._chunk = 1
                return
            if self.ended:
                return
            self._chunk = min(CHUNK, 2 * self._chunk)
