"""What dispatching costs: tasks per second through devices that answer at once.

Side by side in one process: the simplest hand-written asyncio.Queue with 8 workers and a dict that
restores the order, ``Dispatcher.stream`` over 8 drivers, and aiostream's ordered map if installed.

    python examples/dispatch_cost.py [--tasks 200000] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from asyncinfer import Dispatcher, Driver

WORKERS = 8


class Instant(Driver[int, int]):
    """Answers at once."""

    def __init__(self, name: str, max_batch: int = 1) -> None:
        self.name = name
        self.max_batch = max_batch

    async def infer(self, batch: Sequence[int]) -> Sequence[int]:
        """Return the inputs."""
        return batch


async def by_hand(tasks: int) -> int:
    """An asyncio.Queue, 8 workers, and a dict to put the results back in order."""
    drivers = [Instant(f"d{i}") for i in range(WORKERS)]
    queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue(1024)
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
        for _ in drivers:
            await queue.put(None)

    async def in_order() -> AsyncIterator[int]:
        for index in range(tasks):
            while index not in done:
                arrived.clear()
                await arrived.wait()
            yield done.pop(index)

    running = [asyncio.create_task(fill()), *(asyncio.create_task(work(d)) for d in drivers)]
    counted = await count(in_order())
    await asyncio.gather(*running)
    return counted


async def by_dispatcher(tasks: int, max_batch: int = 1) -> int:
    """The same with ``Dispatcher.stream``."""
    drivers = [Instant(f"d{i}", max_batch) for i in range(WORKERS)]
    async with Dispatcher(drivers) as dispatcher:
        return await count(dispatcher.stream(range(tasks)))


async def by_aiostream(tasks: int) -> int:
    """The same with aiostream's ordered map (a hundredth of the tasks: it is slow)."""
    from aiostream import stream

    driver = Instant("d")

    async def infer(x: int, *_: int) -> int:
        return (await driver.infer([x]))[0]

    counted = 0
    source = stream.iterate(range(tasks // 100))
    async with stream.map(source, infer, ordered=True, task_limit=WORKERS).stream() as ys:
        counted = await count(ys)
    return counted * 100


async def count(ys: AsyncIterator[int]) -> int:
    """Check the order, return how many there were."""
    expected = 0
    async for y in ys:
        assert y == expected, f"{y} came in the place of {expected}"
        expected += 1
    return expected


def timed(run: Callable[[], Awaitable[int]], scale: float = 1.0) -> float:
    """Tasks per second of one run, on uvloop where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop

    async def main() -> float:
        start = time.perf_counter()
        tasks = await run()
        return tasks * scale / (time.perf_counter() - start)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main())


def main() -> None:
    """Interleave the variants, print medians and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n = options.tasks
    variants: dict[str, Callable[[], float]] = {
        "by hand": lambda: timed(lambda: by_hand(n)),
        "asyncinfer": lambda: timed(lambda: by_dispatcher(n)),
        "asyncinfer, max_batch 64": lambda: timed(lambda: by_dispatcher(n, 64)),
    }
    try:
        import aiostream  # noqa: F401

        variants["aiostream"] = lambda: timed(lambda: by_aiostream(n), 0.01)
    except ImportError:
        print("aiostream is not installed: left out", file=sys.stderr)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, run in variants.items():
            rates[name].append(run())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians["by hand"]
    if options.json:
        figures = {k: {"tasks_per_second": v, "ratio": v / base} for k, v in medians.items()}
        print(json.dumps(figures))
        return
    for name, rate in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{name:26} {rate:10,.0f} tasks/s ({low:,.0f}-{high:,.0f})  x{rate / base:.2f}")


if __name__ == "__main__":
    main()
