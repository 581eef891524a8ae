"""Calls with ``contextvars`` contexts of their own, one after another in one asyncio task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from functools import partial
from typing import Any, NoReturn

__all__ = ("Begun", "InContext", "asked", "given", "raised")


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
        try:
            awaited = run(steps.send, None)
        except StopIteration as end:
            return end.value
        return (yield from _rest(self._context, steps, awaited))

    def _begin(self) -> Any:
        return self._call(self._given).__await__()


class Begun:
    """An awaitable: the rest of a call whose first step was made in ``context``.

    That step has ended with awaiting ``awaited``. It must have been made by the asyncio task that
    awaits this, as a driver may have asked for the current task.
    """

    __slots__ = ("_awaited", "_context", "_steps")

    def __init__(self, context: Context, steps: Any, awaited: Any) -> None:
        self._context = context
        self._steps = steps
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        return _rest(self._context, self._steps, self._awaited)


def _rest(context: Context, steps: Any, awaited: Any) -> Generator[Any, Any, Any]:
    """Make all steps but the first in ``context``."""
    run = context.run
    while True:
        try:
            act = partial(steps.send, (yield awaited))
        except BaseException as error:  # the asyncio task is cancelled
            act = partial(steps.throw, error)
        try:
            awaited = run(act)
        except StopIteration as end:
            return end.value


async def asked(driver: Any, batch: list[Any]) -> Any:
    """What the driver answers. Its first step makes the call itself."""
    return await driver.infer(batch)


async def given(outputs: Any) -> Any:
    """An answer that is there already."""
    return outputs


async def raised(error: BaseException) -> NoReturn:
    """An answer that is an error already."""
    raise error
