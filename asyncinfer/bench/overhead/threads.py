"""Calls of a function that does nothing in another thread, and their way back to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

import anyio.to_thread

from asyncinfer.bench.overhead.trials import Trial, Work
from asyncinfer_drivers.worker import Worker

__all__ = ("BARE", "BURST", "SECTIONS", "trials")

#: calls at once
BURST = 64

BARE = "bare thread"
#: how calls are made, with what is shown of it
SECTIONS = {
    "one call at a time": "thread, one call at a time",
    "64 calls at once": "thread, 64 calls at once",
    "64 tasks in one call": "thread, 64 tasks in one call",
}

#: runs a function with its argument in another thread
Offload: TypeAlias = Callable[..., Awaitable[Any]]
_Job: TypeAlias = tuple[Callable[[Any], Any], Any, "asyncio.Future[Any]"]


class _Bare:
    """A thread, a queue to it, and ``call_soon_threadsafe`` back: nothing else."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="asyncinfer-bench")
        self._thread.start()

    async def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        done = self._loop.create_future()
        self._jobs.put((function, argument, done))
        return await done

    async def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()  # it has nothing left to do

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, argument, done = job
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(done.set_result, function(argument))


def trials(section: str) -> list[Trial]:
    """Who makes calls the way of that section."""
    tasks = {"one call at a time": 3_000, "64 calls at once": 6_400}.get(section, 128_000)
    shape = _SHAPES[section]
    found = [
        Trial(BARE, _with(_Bare, shape), tasks),
        Trial("asyncinfer's Worker", _with(_started, shape), tasks),
    ]
    if section != "64 tasks in one call":
        found.append(Trial("asyncio.to_thread", lambda n: shape(asyncio.to_thread, n), tasks))
        found.append(
            Trial("anyio.to_thread", lambda n: shape(anyio.to_thread.run_sync, n), tasks // 2)
        )
    return found


def _started() -> Worker:
    made = Worker("bench")
    made.start()
    return made


def _with(
    make: Callable[[], _Bare | Worker], shape: Callable[[Offload, int], Awaitable[None]]
) -> Work:
    """``shape`` with a thread that ends with it."""

    async def work(tasks: int) -> None:
        thread = make()
        try:
            await shape(thread.run, tasks)
        finally:
            await thread.stop()

    return work


async def _singly(run: Offload, tasks: int) -> None:
    for x in range(tasks):
        await run(_same, x)


async def _at_once(run: Offload, tasks: int) -> None:
    for x in range(0, tasks, BURST):
        await asyncio.gather(*(run(_same, y) for y in range(x, min(x + BURST, tasks))))


async def _together(run: Offload, tasks: int) -> None:
    for x in range(0, tasks, BURST):
        await run(_same_each, range(x, min(x + BURST, tasks)))


def _same(x: Any) -> Any:
    return x


def _same_each(xs: Sequence[Any]) -> list[Any]:
    return [_same(x) for x in xs]


_SHAPES = {
    "one call at a time": _singly,
    "64 calls at once": _at_once,
    "64 tasks in one call": _together,
}
