"""What ``Dispatcher.stream`` and ``Dispatcher.results`` return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

from asyncinfer.engine import Engine
from asyncinfer.result import Result
from asyncinfer.task import Task

__all__ = ("ResultStream", "Stream")

OutT = TypeVar("OutT")
ItemT = TypeVar("ItemT")


class BaseStream(AsyncIterator[ItemT], Generic[ItemT]):
    """An async iterator that is also an async context manager.

    Nothing is read from the source before the first result is asked for. The stream ends, and
    frees its tasks, when it is exhausted, closed, or no longer referred to (as after a ``break``
    out of ``async for y in dispatcher.stream(xs)``). Where that must not depend on the garbage
    collector, use ``async with dispatcher.stream(xs) as ys``.
    """

    def __init__(
        self, engine: Engine, source: Iterable[Any] | AsyncIterable[Any], *, ordered: bool
    ) -> None:
        self._engine = engine
        self._source: Iterable[Any] | AsyncIterable[Any] | None = source
        self._lane = engine.new_lane(ordered=ordered)

    def __aiter__(self) -> BaseStream[ItemT]:
        return self

    async def __aenter__(self) -> BaseStream[ItemT]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _next(self) -> Task:
        lane = self._lane
        if not lane.ready:
            await self._wait()
        task, due = lane.next_ready()
        if due:
            self._engine.pool.wake()
        return task

    async def _wait(self) -> None:
        lane = self._lane
        if self._source is not None:
            source, self._source = self._source, None
            self._engine.begin(lane, source)
        while not lane.ready:
            if lane.closed or lane.exhausted:
                self._engine.leave(lane)
                error, lane.source_error = lane.source_error, None
                raise StopAsyncIteration if error is None else error
            await lane.results_ready()

    async def aclose(self) -> None:
        """Stop: drop what is not delivered, free the devices, stop reading. Idempotent.

        Does not wait for calls that run on devices; those cancel where their driver can.
        """
        self._source = None
        reader = self._engine.drop(self._lane)
        if reader is not None:
            await asyncio.wait([reader])

    def __del__(self) -> None:
        engine, lane = self._engine, self._lane
        if lane.closed or lane.exhausted or engine.loop.is_closed():
            return
        engine.loop.call_soon_threadsafe(engine.drop, lane)


class Stream(BaseStream[OutT]):
    """The outputs of a stream, in order; a failed task raises its ``TaskError`` in its turn.

    Asking for the next one after an error goes on behind it.
    """

    def __init__(
        self,
        engine: Engine,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        return_exceptions: bool,
    ) -> None:
        super().__init__(engine, source, ordered=ordered)
        self._return_exceptions = return_exceptions

    async def __anext__(self) -> OutT:
        task = await self._next()
        error = task.error
        if error is None:
            return task.value  # type: ignore[no-any-return]
        if self._return_exceptions:
            return error  # type: ignore[return-value]
        del self, task  # so that the error's traceback does not keep the stream alive
        raise error


class ResultStream(BaseStream[Result[OutT]]):
    """The results of a stream, in order; a failed task is a result with its error set."""

    async def __anext__(self) -> Result[OutT]:
        task = await self._next()
        return Result(
            task.index,
            task.value,
            task.error,
            task.device,
            task.attempts,
            task.submitted,
            task.started,
            task.finished,
            self._engine.clock(),
        )
