"""Reads a source no further ahead than it may be, and without blocking the event loop."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from asyncinfer._core.tasks.ahead import ReadAhead
from asyncinfer._core.tasks.size import TINY, size_of

__all__ = ("feed",)

#: most inputs read from a synchronous source in one turn of the event loop
MOST_AT_ONCE = 1024
#: most inputs read without a look at the clock
LARGEST_CHUNK = 64
#: seconds for which a source is read before the event loop gets a turn
LONGEST_TURN = 0.0005


async def feed(
    source: Iterable[Any] | AsyncIterable[Any],
    ahead: ReadAhead,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    """Read ``source`` to its end, and no further ``ahead`` than that has room.

    ``accept`` makes tasks of the inputs and queues them. A generator is closed if it
    is not read to its end.
    """
    try:
        if isinstance(source, AsyncIterable):
            await _feed_async(aiter(source), ahead, accept, clock)
        else:
            await _feed_sync(iter(source), ahead, accept, clock)
    finally:
        if inspect.isasyncgen(source):
            await source.aclose()
        elif inspect.isgenerator(source):
            source.close()


async def _feed_async(
    source: AsyncIterator[Any],
    ahead: ReadAhead,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    until = clock() + LONGEST_TURN
    while True:
        await ahead.room()
        try:
            item = await anext(source)
        except StopAsyncIteration:
            return
        accept([item])
        ahead.add(1, size_of(item))
        del item
        if clock() > until:  # the source may never have given the event loop a turn
            await asyncio.sleep(0)
            until = clock() + LONGEST_TURN


async def _feed_sync(
    source: Iterator[Any],
    ahead: ReadAhead,
    accept: Callable[[list[Any]], object],
    clock: Callable[[], float],
) -> None:
    """Read for one turn of the event loop at a time.

    Looking at the clock after every input would cost more than reading the input. So the clock is
    looked at after chunks of 1, 2, 4 ... inputs, and from 1 again once a chunk was slow.
    """
    chunk, ended = 1, False
    while not ended:
        most = min(await ahead.room(), MOST_AT_ONCE)
        items: list[Any] = []
        size, left = 0, ahead.left
        until = clock() + LONGEST_TURN
        try:
            while len(items) < most and size < left and not ended:
                goal = min(most, len(items) + chunk)
                size += _read(source, goal - len(items), left - size, items)
                ended = len(items) < goal and size < left
                if clock() > until:
                    chunk = 1
                    break
                chunk = min(LARGEST_CHUNK, 2 * chunk)
        finally:
            if items:
                accept(items)
                ahead.add(len(items), size)
        if not ahead.full:  # if it is full, waiting for room gives the event loop a turn
            await asyncio.sleep(0)


def _read(source: Iterator[Any], most: int, room: float, items: list[Any]) -> int:
    """Append the next inputs to ``items``, until their data fill ``room``; return its bytes."""
    if room == math.inf:
        items.extend(islice(source, most))
        return 0
    size = 0
    for item in islice(source, most):
        items.append(item)
        if type(item) not in TINY:
            size += size_of(item)
            if size >= room:
                break
    return size
