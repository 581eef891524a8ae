"""What ``Dispatcher.stream`` and ``Dispatcher.results`` return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from asyncinfer._core.engine import Engine
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import TaskError

__all__ = ("Stream",)

ItemT = TypeVar("ItemT")


class Stream(AsyncIterator[ItemT]):
    """An async iterator over results that is also an async context manager.

    Nothing is read from the source before the first result is asked for. The stream ends, and
    frees its tasks, when it is exhausted, closed, or no longer referred to (as after a ``break``
    out of ``async for y in dispatcher.stream(xs)``). Where that must not depend on the garbage
    collector, use ``async with dispatcher.stream(xs) as ys``.

    After an error was raised, the next result asked for is the one after the failed task.
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
        while True:
            for item in self._lane.piece:
                return item
            if not self._lane.ready:
                await self._wait()
                continue
            error = self._next_piece()
            if error is not None:
                del self  # so that the error's traceback does not keep the stream alive
                raise error

    def _next_piece(self) -> TaskError | None:
        """Take the next piece of the results, or return the error to raise in its place."""
        lane = self._lane
        spans = lane.next_piece()
        self._engine.wake_if_free(lane)
        if self._raises and spans[0].error is not None:
            return spans[0].error
        lane.piece = chain.from_iterable(map(self._items, spans))
        return None

    async def _wait(self) -> None:
        """Return when a result is ready; raise at the end of the stream."""
        lane = self._lane
        if self._source is not None:
            self._engine.start_reading(lane, self._source)
            self._source = None
        lane.piece_used_up()
        self._engine.wake_if_free(lane)
        while not lane.ready:
            if lane.closed or lane.exhausted:
                self._engine.leave(lane)
                error = lane.take_error()
                raise StopAsyncIteration if error is None else error
            await lane.results_ready()

    async def aclose(self) -> None:
        """End the stream: drop what is not delivered, free the devices, stop reading. Idempotent.

        Calls that run on devices are cancelled. This does not wait until they have ended.
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
