"""An event loop on virtual time: sleeping costs nothing, and every run is the same."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ("DeadlockError", "VirtualLoop", "run_virtual")

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """Every coroutine waits for another one, and no timer is set: real time would hang."""


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if events:
            return events
        if timeout is None:
            raise DeadlockError("nothing is ready and no timer is set")
        self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose ``time()`` starts at 0 and jumps to the next timer.

    Only timers move its time: it does not wait for threads, processes or sockets.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now

    @property
    def _clock_resolution(self) -> float:
        """asyncio runs timers together that are due within this time: here, at the same time."""
        return math.ulp(self._jumping.now)

    @_clock_resolution.setter
    def _clock_resolution(self, seconds: float) -> None:
        """Ignore that asyncio sets the resolution of the real clock."""


def run_virtual(coro: Coroutine[Any, Any, T]) -> T:
    """Run ``coro`` to its end on a :class:`VirtualLoop` and return its result.

    Raises ``DeadlockError``, naming the waiting tasks, if everything waits with no timer set.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            return runner.run(coro)
        except DeadlockError as error:
            waiting = sorted(_where(task) for task in asyncio.all_tasks(runner.get_loop()))
            text = f"{error}; waiting: {'; '.join(waiting) or 'no task'}"
            raise DeadlockError(text) from None


def _where(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return task.get_name()
    code = frames[-1].f_code
    return f"{task.get_name()} in {code.co_qualname} line {frames[-1].f_lineno}"
