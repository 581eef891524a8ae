"""Reads a source no further ahead than its queue has room, and without blocking the event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from asyncinfer._core.tasks.intake import Intake

__all__ = ("feed",)

#: most inputs read from a synchronous source in one turn of the event loop
MOST_AT_ONCE = 1024
#: most inputs read without a look at the clock
LARGEST_CHUNK = 64
#: seconds for which a source is read before the event loop gets a turn
LONGEST_TURN = 0.0005


async def feed(
    source: Iterable[Any] | AsyncIterable[Any],
    intake: Intake,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    """Read ``source`` to its end, waiting for room in ``intake`` before each read.

    ``accept`` makes tasks of the inputs and queues them in ``intake``. A generator is closed if it
    is not read to its end.
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
    until = clock() + LONGEST_TURN
    while True:
        await intake.room()
        try:
            item = await anext(source)
        except StopAsyncIteration:
            return
        accept([item])
        if clock() > until:  # the source may never have given the event loop a turn
            await asyncio.sleep(0)
            until = clock() + LONGEST_TURN


async def _feed_sync(
    source: Iterator[Any],
    intake: Intake,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    """Read for one turn of the event loop at a time.

    Looking at the clock after every input would cost more than reading the input. So the clock is
    looked at after chunks of 1, 2, 4 ... inputs, and from 1 again once a chunk was slow.
    """
    chunk, ended = 1, False
    while not ended:
        most = min(await intake.room(), MOST_AT_ONCE)
        items: list[Any] = []
        until = clock() + LONGEST_TURN
        try:
            while len(items) < most and not ended:
                goal = min(most, len(items) + chunk)
                items.extend(islice(source, goal - len(items)))
                ended = len(items) < goal
                if clock() > until:
                    chunk = 1
                    break
                chunk = min(LARGEST_CHUNK, 2 * chunk)
        finally:
            if items:
                accept(items)
        if not intake.full():  # if it is full, waiting for room gives the event loop a turn
            await asyncio.sleep(0)
