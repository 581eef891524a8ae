"""asyncinfer in its own process: ``await dispatcher.infer(image)`` and ``dispatcher.stream``."""

import asyncio
import gc
import time
from collections.abc import Iterator

from common import LABELS, WORKERS, Commands, images, loads, versions
from own_devices import devices

from asyncinfer import Dispatcher
from asyncinfer._optional import run_async


async def stream(dispatcher: Dispatcher, tasks: int) -> loads.Load:
    """One ordered stream."""
    load, data, started = loads.Load(), images(), time.perf_counter()
    source: Iterator[bytes] = (data[number % len(data)] for number in range(tasks))
    number = 0
    async with dispatcher.stream(source) as labels:
        async for label in labels:
            load.check(label, LABELS[number % len(data)], 0.0)
            number += 1
    load.seconds = time.perf_counter() - started
    return load


async def obey(dispatcher: Dispatcher, order: dict) -> loads.Load:
    """Run one load."""
    data = images()

    async def call(number: int) -> int:
        return await dispatcher.infer(data[number])

    kind = order.pop("load")
    if kind == "stream":
        return await stream(dispatcher, **order)
    run = {"closed": loads.closed_loop, "open": loads.open_loop}[kind]
    return await run(call, LABELS, **order)


async def main() -> None:
    """Start, obey, stop."""
    commands = Commands()
    drivers = devices(WORKERS)
    async with Dispatcher(drivers, wait_for="all") as dispatcher:
        for driver in drivers:
            await driver.tune()
        gc.collect()
        gc.freeze()  # as in ours_http.py
        commands.reply(versions=versions("asyncinfer", "torch"))
        lines = iter(commands)
        while (order := await asyncio.to_thread(next, lines, None)) is not None:
            commands.reply(load=(await obey(dispatcher, order)).as_message())


if __name__ == "__main__":
    run_async(main())
