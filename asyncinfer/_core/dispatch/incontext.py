"""Calls with ``contextvars`` contexts of their own, one after another in one asyncio task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from functools import partial
from typing import Any

__all__ = ("InContext",)


class InContext:
    """An awaitable: ``call(given)`` and all that its answer awaits, in ``context``.

    An asyncio task has one context. Making a task for each call costs more than most short calls;
    this runs each step of a call in the context that the call should have.
    """

    __slots__ = ("_call", "_context", "_given")

    def __init__(self, context: Context, call: Callable[[Any], Awaitable[Any]], given: Any) -> None:
        self._context = context
        self._call = call
        self._given = given

    def __await__(self) -> Generator[Any, Any, Any]:
        run = self._context.run
        steps: Any = run(self._begin)
        if not hasattr(steps, "send"):  # any iterator will do
            return (yield from steps)
        act = partial(steps.send, None)
        while True:
            try:
                awaited = run(act)
            except StopIteration as end:
                return end.value
            try:
                act = partial(steps.send, (yield awaited))
            except BaseException as error:  # the asyncio task is cancelled
                act = partial(steps.throw, error)

    def _begin(self) -> Any:
        return self._call(self._given).__await__()
