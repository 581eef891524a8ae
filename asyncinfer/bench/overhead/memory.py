"""Bytes that a waiting task costs, beside its input: the growth of Python's heap."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from itertools import repeat
from typing import Any

from asyncinfer.bench.overhead.streams import BY_HAND
from asyncinfer.bench.overhead.trials import Loops
from asyncinfer.bench.record import Run, Table
from asyncinfer.bench.suite import Context
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver

__all__ = ("CASE", "memory", "memory_table")

CASE = "memory per task"
_TASKS = 20_000
#: turns of the event loop after which nothing more will be accepted
_TURNS = 100_000


class _Stuck(Driver[Any, Any]):
    """Answers when told."""

    name = "stuck"

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        await self.go.wait()
        return batch


async def _ours(tasks: int) -> float:
    """With all tasks accepted, the first of them on a device."""
    driver, x = _Stuck(), object()
    async with Dispatcher([driver], window=tasks, queue_size=tasks) as dispatcher:
        before = _heap()
        stream = dispatcher.stream(repeat(x, tasks))
        first = asyncio.ensure_future(anext(stream))
        for _ in range(_TURNS):
            if dispatcher.stats().submitted >= tasks:
                break
            await asyncio.sleep(0)
        grown = _heap() - before
        driver.go.set()
        await first
        await stream.aclose()
    return grown


async def _by_hand(tasks: int) -> float:
    """A tuple of index and input for each in an ``asyncio.Queue``."""
    x = object()
    before = _heap()
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(tasks)
    for index in range(tasks):
        await queue.put((index, x))
    return _heap() - before


def _heap() -> float:
    gc.collect()
    return float(tracemalloc.get_traced_memory()[0])


_CASES: dict[str, Callable[[int], Coroutine[Any, Any, float]]] = {
    BY_HAND: _by_hand,
    "asyncinfer": _ours,
}


def memory(loops: Loops, context: Context) -> list[Run]:
    """One run each: it is the same every time, and on every loop."""
    tasks = _TASKS // 10 if context.short else _TASKS
    loop, factory = next(iter(loops.items()))
    runs: list[Run] = []
    for policy, measured in _CASES.items():
        tracemalloc.start()
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                each = runner.run(measured(tasks)) / tasks
        finally:
            tracemalloc.stop()
        figures = {"loop": loop, "bytes_per_task": each}
        runs.append(
            Run(
                suite="overhead",
                case=CASE,
                policy=policy,
                tasks=tasks,
                window=tasks,
                queue_size=tasks,
                figures=figures,
            )
        )
    return runs


def memory_table(runs: Sequence[Run]) -> Table:
    """One line each."""
    rows = [(run.policy, f"{run.figures['bytes_per_task']:.0f}") for run in runs]
    note = (
        f"Growth of Python's heap with {runs[0].tasks:,} tasks waiting, their inputs apart. "
        "The dispatcher keeps at most window + queue_size tasks, 2,048 unless told otherwise."
    )
    return Table("Memory per waiting task", ("", "bytes"), rows, note)
