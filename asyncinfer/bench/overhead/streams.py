"""Ordered streams of tasks that answer at once: ours, by hand, and what other packages offer.

Each has the same work to do: the numbers from 0 through 8 coroutine functions at a time, back in
order. Each raises ``AssertionError`` if a result is out of place.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from asyncinfer.bench.overhead.trials import Trial
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver

__all__ = ("BY_HAND", "STREAMS", "WORKERS", "Instant", "by_hand", "check_order", "ours")

#: devices, workers or concurrent calls of everything here
WORKERS = 8
#: tasks read ahead, by all that have a limit
QUEUE = 1024

BY_HAND = "asyncio.Queue by hand"


class Instant(Driver[int, int]):
    """A device that answers at once."""

    def __init__(self, name: str, max_batch: int = 1) -> None:
        self.name = name
        self.max_batch = max_batch

    async def infer(self, batch: Sequence[int]) -> Sequence[int]:
        """Return the inputs."""
        return batch


async def ours(tasks: int, *, max_batch: int = 1) -> None:
    """``Dispatcher.stream`` over drivers."""
    drivers = [Instant(f"d{i}", max_batch) for i in range(WORKERS)]
    async with Dispatcher(drivers) as dispatcher:
        await check_order(dispatcher.stream(range(tasks)), tasks)


async def by_hand(tasks: int) -> None:
    """The simplest there is: an ``asyncio.Queue``, workers, and a dict that restores the order."""
    queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue(QUEUE)
    done: dict[int, int] = {}
    arrived = asyncio.Event()

    async def work(driver: Instant) -> None:
        while (item := await queue.get()) is not None:
            index, x = item
            done[index] = (await driver.infer([x]))[0]
            arrived.set()

    async def fill() -> None:
        for index, x in enumerate(range(tasks)):
            await queue.put((index, x))
        for _ in range(WORKERS):
            await queue.put(None)

    async def in_order() -> AsyncIterator[int]:
        for index in range(tasks):
            while index not in done:
                arrived.clear()
                await arrived.wait()
            yield done.pop(index)

    async with asyncio.TaskGroup() as group:
        for i in range(WORKERS):
            group.create_task(work(Instant(f"d{i}")))
        group.create_task(fill())
        await check_order(in_order(), tasks)


async def with_aiostream(tasks: int) -> None:
    """aiostream's ordered ``map``."""
    stream: Any = importlib.import_module("aiostream").stream
    source = stream.iterate(range(tasks))
    async with stream.map(source, _call(), ordered=True, task_limit=WORKERS).stream() as ys:
        await check_order(ys, tasks)


async def with_streamable(tasks: int) -> None:
    """streamable's ``map`` with a coroutine function, which keeps the order."""
    stream: Any = importlib.import_module("streamable").stream
    await check_order(aiter(stream(range(tasks)).map(_call(), concurrency=WORKERS)), tasks)


async def with_anyio(tasks: int) -> None:
    """anyio's memory object streams with workers, and a dict that restores the order."""
    import anyio

    send, receive = anyio.create_memory_object_stream[tuple[int, int]](QUEUE)
    send_back, receive_back = anyio.create_memory_object_stream[tuple[int, int]](QUEUE)
    infer = _call()

    async def work() -> None:
        async with receive.clone() as inputs, send_back.clone() as outputs:
            async for index, x in inputs:
                await outputs.send((index, await infer(x)))

    async def fill() -> None:
        async with send:
            for index, x in enumerate(range(tasks)):
                await send.send((index, x))

    async def in_order() -> AsyncIterator[int]:
        done: dict[int, int] = {}
        head = 0
        async for index, y in receive_back:
            done[index] = y
            while head in done:
                yield done.pop(head)
                head += 1

    async with anyio.create_task_group() as group, receive_back:
        group.start_soon(fill)
        for _ in range(WORKERS):
            group.start_soon(work)
        async with receive, send_back:
            await anyio.lowlevel.checkpoint()  # every worker has its clones
        await check_order(in_order(), tasks)


def _call() -> Callable[..., Awaitable[int]]:
    driver = Instant("d")

    async def infer(x: int, *_: int) -> int:
        return (await driver.infer([x]))[0]

    return infer


async def check_order(ys: AsyncIterator[int], tasks: int) -> None:
    """Raise ``AssertionError`` unless these are all numbers from 0 in order."""
    expected = 0
    async for y in ys:
        if y != expected:
            raise AssertionError(f"{y} came in the place of {expected}")
        expected += 1
    if expected != tasks:
        raise AssertionError(f"{expected} results for {tasks} tasks")


#: the first is what the others are measured by
STREAMS = (
    Trial(BY_HAND, by_hand, 100_000),
    Trial("asyncinfer", ours, 100_000),
    Trial("asyncinfer, max_batch 8", partial(ours, max_batch=8), 100_000, "", 8),
    Trial("asyncinfer, max_batch 64", partial(ours, max_batch=64), 100_000, "", 64),
    Trial("streamable map", with_streamable, 20_000, "streamable"),
    Trial("anyio memory streams", with_anyio, 5_000, "anyio"),
    Trial("aiostream ordered map", with_aiostream, 2_000, "aiostream"),
)
