"""What ``Dispatcher.stream`` and ``Dispatcher.results`` return."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from asyncinfer._core.engine import Engine
from asyncinfer._core.tasks.spans import Span
from asyncinfer._core.tasks.turns import PLAIN, Claim
from asyncinfer.errors import ClosedError, TaskError

__all__ = ("Stream",)

ItemT = TypeVar("ItemT")


class Stream(AsyncIterator[ItemT]):
    """An async iterator over results that is also an async context manager.

    Nothing is read from the source before the first result is asked for. The stream ends, and
    frees its tasks, when it is exhausted, closed, or no longer referred to: as after a ``break``
    out of ``async for y in dispatcher.stream(xs)``, or once its reader was cancelled there, even if
    the cancelled task is kept. A stream with a name lives as long as the name does; where it is to
    end with a block, use ``async with dispatcher.stream(xs) as ys``.

    A read that is cancelled, as by a timeout, takes nothing: another may follow. After ``aclose``
    by another task, a reader that was not given everything gets ``ClosedError``.

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
        claim: Claim = PLAIN,
    ) -> None:
        self._engine = engine
        self._source: Iterable[Any] | AsyncIterable[Any] | None = source
        self._raises = raises
        self._items = items
        self._lane = engine.new_lane(ordered=ordered, claim=claim)
        #: the asyncio task that reads; when it was cancelled, it is to keep no traceback
        self._reader: weakref.ref[asyncio.Task[Any]] | None = None
        #: the asyncio task that closed the stream before its end
        self._closer: weakref.ref[asyncio.Task[Any]] | None = None

    def __aiter__(self) -> Stream[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        item: ItemT
        while True:
            for item in self._lane.piece:
                return item
            if not self._lane.ready:
                try:
                    await self._wait()
                except BaseException:
                    del self  # so that the error's traceback does not keep the stream alive
                    raise
                continue
            error = self._next_piece()
            if error is not None:
                del self
                try:
                    raise error
                finally:
                    del error  # which would keep itself alive

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
        try:
            self._watch_reader()
            lane = self._lane
            if self._source is not None:
                self._engine.start_reading(lane, self._source)
                self._source = None
            lane.piece_used_up()
            self._engine.wake_if_free(lane)
            while not lane.ready:
                if lane.closed or lane.exhausted:
                    self._engine.leave(lane)
                    raise lane.take_error() or self._end()
                await lane.results_ready()
        except BaseException:
            self = lane = None  # type: ignore[assignment]  # an error that is kept holds its frames
            raise

    def _end(self) -> Exception:
        """What tells the reader that nothing more comes."""
        if self._closer is None or self._closer() is asyncio.current_task():
            return StopAsyncIteration()
        return ClosedError("the stream was closed by another task before its end")

    def _watch_reader(self) -> None:
        """Have an asyncio task that reads, and is cancelled, not keep the stream alive."""
        task = asyncio.current_task()
        if task is None or (self._reader is not None and self._reader() is task):
            return
        task.remove_done_callback(forget_traceback)  # once is enough
        task.add_done_callback(forget_traceback)
        self._reader = weakref.ref(task)

    async def aclose(self) -> None:
        """End the stream: drop what is not delivered, free the devices, stop reading. Idempotent.

        Calls that run on devices are cancelled. This does not wait until they have ended.
        """
        self._source = None
        self._note_closer()
        reader = self._engine.drop(self._lane)
        if reader is not None:
            await asyncio.wait([reader])

    def _note_closer(self) -> None:
        """Note who closes the stream, unless it has ended already or was read to its end."""
        lane, task = self._lane, asyncio.current_task()
        if lane.closed or task is None:
            return
        if not lane.exhausted or any(True for _ in lane.piece):
            self._closer = weakref.ref(task)

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

    def __repr__(self) -> str:
        lane = self._lane
        order = "in order" if lane.ordered else "unordered"
        if lane.closed or lane.exhausted:
            state = "ended"
        else:
            state = "not begun" if self._source is not None else "open"
        return f"<Stream {lane.number}, {order}: {state}, {lane.accepted} tasks accepted>"


def forget_traceback(task: asyncio.Task[Any]) -> None:
    """Have a cancelled task forget where: its frames would keep what they had, a stream too."""
    if task.cancelled():
        with suppress(asyncio.CancelledError):
            task.exception()  # this hands over the error with its frames; the next is a new one
