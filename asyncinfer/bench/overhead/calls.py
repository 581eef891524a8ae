"""Single calls, 64 of them waiting for an answer at any time: ``infer``, and the same by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from asyncinfer.bench.overhead.streams import QUEUE, WORKERS, Instant
from asyncinfer.bench.overhead.trials import Trial
from asyncinfer.dispatcher import Dispatcher

__all__ = ("BY_HAND", "CALLS", "CLIENTS")

#: calls in flight
CLIENTS = 64

BY_HAND = "queue and futures by hand"


async def ours(tasks: int, *, max_batch: int = 1) -> None:
    """``Dispatcher.infer``."""
    drivers = [Instant(f"d{i}", max_batch) for i in range(WORKERS)]
    async with Dispatcher(drivers) as dispatcher:
        await _call(dispatcher.infer, tasks)


async def by_hand(tasks: int) -> None:
    """An ``asyncio.Queue`` of inputs with the future of each, and workers."""
    queue: asyncio.Queue[tuple[int, asyncio.Future[int]] | None] = asyncio.Queue(QUEUE)
    loop = asyncio.get_running_loop()

    async def work(driver: Instant) -> None:
        while (item := await queue.get()) is not None:
            x, done = item
            done.set_result((await driver.infer([x]))[0])

    async def infer(x: int) -> int:
        done: asyncio.Future[int] = loop.create_future()
        await queue.put((x, done))
        return await done

    async with asyncio.TaskGroup() as group:
        for i in range(WORKERS):
            group.create_task(work(Instant(f"d{i}")))
        await _call(infer, tasks)
        for _ in range(WORKERS):
            await queue.put(None)


async def _call(infer: Callable[[int], Awaitable[int]], tasks: int) -> None:
    """``tasks`` calls by clients that each make the next when the last is answered."""
    inputs = iter(range(tasks))

    async def client() -> None:
        for x in inputs:
            if (y := await infer(x)) != x:
                raise AssertionError(f"{y} is the answer to another task than {x}")

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())


#: the first is what the others are measured by
CALLS = (
    Trial(BY_HAND, by_hand, 40_000),
    Trial("asyncinfer", ours, 20_000),
    Trial("asyncinfer, max_batch 64", partial(ours, max_batch=64), 20_000, "", 64),
)
