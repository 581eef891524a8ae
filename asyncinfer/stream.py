"""What ``Dispatcher.stream`` and ``Dispatcher.results`` return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from asyncinfer.engine import Engine
from asyncinfer.span import Span

__all__ = ("Stream",)

ItemT = TypeVar("ItemT")


class Stream(AsyncIterator[ItemT]):
    """An async iterator over results that is also an async context manager.

    Nothing is read from the source before the first result is asked for. The stream ends, and
    frees its tasks, when it is exhausted, closed, or no longer referred to (as after a ``break``
    out of ``async for y in dispatcher.stream(xs)``). Where that must not depend on the garbage
    collector, use ``async with dispatcher.stream(xs) as ys``.

    After a raised error, asking for the next result goes on behind the failed task.
    """

    def __init__(
        self,
        engine: Engine,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        raises: bool,
        items: Callable[[Span], Iterable[ItemT]],
    ) -> None:
        self._engine = engine
        self._source: Iterable[Any] | AsyncIterable[Any] | None = source
        self._raises = raises
        self._items = items
        self._lane = engine.new_lane(ordered=ordered)

    def __aiter__(self) -> Stream[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        item: ItemT
        for item in self._lane.piece:
            return item
        return await self._next_piece()

    async def _next_piece(self) -> ItemT:
        """Get some more results, and return the first of them."""
        lane = self._lane
        lane.used_up()
        if not lane.ready:
            await self._wait()
        spans = lane.next_piece()
        self._engine.pool.more(lane)
        error = spans[0].error
        if error is not None and self._raises:
            del self, lane, spans  # so that the error's traceback does not keep the stream alive
            raise error
        lane.piece = items = chain.from_iterable(map(self._items, spans))
        return next(items)

    async def _wait(self) -> None:
        """Return when a result is ready; raise at the end of the stream."""
        lane = self._lane
        if self._source is not None:
            self._engine.begin(lane, self._source)
            self._source = None
        self._engine.pool.more(lane)
        while not lane.ready:
            if lane.closed or lane.exhausted:
                self._engine.leave(lane)
                error, lane.source_error = lane.source_error, None
                raise StopAsyncIteration if error is None else error
            await lane.results_ready()

    async def aclose(self) -> None:
        """Stop: drop what is not delivered, free the devices, stop reading. Idempotent.

        Does not wait for calls that run on devices; those are cancelled where their driver can.
        """
        self._source = None
        reader = self._engine.drop(self._lane)
        if reader is not None:
            await asyncio.wait([reader])

    async def __aenter__(self) -> Stream[ItemT]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        engine, lane = self._engine, self._lane
        if not (lane.closed or engine.loop.is_closed()):
            engine.loop.call_soon_threadsafe(engine.drop, lane)
