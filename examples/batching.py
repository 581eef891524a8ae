"""How large batches should be: fixed limits against the one that asyncinfer finds.

Four sets of simulated devices run a stream at full load, then one whose tasks come at random times
at a part of what the devices can do, then one that comes 32 tasks at a time. With `max_batch` 1, 8
and 32: the last leaves the choice to asyncinfer. Latencies count from when a task was to come. In
virtual time, so the figures are the same on every machine.

    python examples/batching.py [--tasks 2000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence

from asyncinfer import Dispatcher
from asyncinfer.testing import SimulatedDriver, run_virtual

#: for each device the seconds per call and per task
DEVICES = {
    "one GPU": [(0.020, 0.001)],
    "four GPUs": [(0.020, 0.001)] * 4,
    "GPU, CPU, MCU": [(0.020, 0.001), (0.010, 0.010), (0.0, 0.100)],
    "calls cost nothing": [(0.0, 0.002), (0.0, 0.004)],
}
LIMITS = (1, 8, 32)
LOADS = (0.02, 0.2, 0.5, 0.8, 1.1)


def drivers(name: str, max_batch: int) -> list[SimulatedDriver]:
    """One set of devices."""
    return [
        SimulatedDriver(f"d{n}", each, batch_cost=cost, max_batch=max_batch)
        for n, (cost, each) in enumerate(DEVICES[name])
    ]


def capacity(name: str) -> float:
    """Tasks a second with batches of 32."""
    return sum(32 / (cost + 32 * each) for cost, each in DEVICES[name])


async def rate(devices: Sequence[SimulatedDriver], tasks: int) -> float:
    """Results a second at full load."""
    clock = asyncio.get_running_loop().time
    async with Dispatcher(devices) as dispatcher:
        began, expected = clock(), 0
        async for output in dispatcher.stream(range(tasks)):
            assert output == expected
            expected += 1
        return tasks / (clock() - began)


async def latency(devices: Sequence[SimulatedDriver], arrivals: Sequence[float]) -> float:
    """Mean seconds from when a task was meant to come to its result."""
    loop, total = asyncio.get_running_loop(), 0.0

    async def source() -> AsyncIterator[float]:
        for at in arrivals:
            await asyncio.sleep(max(0.0, at - loop.time()))
            yield at

    async with Dispatcher(devices, window=4096, queue_size=1_000_000) as dispatcher:
        async for at in dispatcher.stream(source()):
            total += loop.time() - at
    return total / len(arrivals)


def poisson(a_second: float, tasks: int) -> list[float]:
    """Times of arrival at random."""
    rng, now = random.Random(42), 0.0
    return [now := now + rng.expovariate(a_second) for _ in range(tasks)]


def bursts(a_second: float, tasks: int) -> list[float]:
    """Times of arrival, 32 tasks at once."""
    return [n // 32 * 32 / a_second for n in range(tasks)]


def compare(name: str, max_batch: int, tasks: int) -> dict[str, float]:
    """Tasks a second at full load; then milliseconds a task."""
    full = capacity(name)
    row = {"full load": run_virtual(rate(drivers(name, max_batch), 2 * tasks))}
    arrivals = {f"{load:.0%}": poisson(load * full, tasks) for load in LOADS}
    arrivals["bursts"] = bursts(full / 2, tasks)
    for what, times in arrivals.items():
        row[what] = 1000 * run_virtual(latency(drivers(name, max_batch), times))
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {
        name: {limit: compare(name, limit, options.tasks) for limit in LIMITS} for name in DEVICES
    }
    if options.json:
        print(json.dumps(rows))
        return
    loads = [f"{load:.0%}" for load in LOADS]
    titles = " ".join(f"{title:>8}" for title in [*loads, "bursts"])
    print(f"devices             batch  tasks/s   ms: {titles}")
    for name, limits in rows.items():
        for limit, row in limits.items():
            first, *others = row.values()
            print(f"{name:<20}{limit:>5}{first:>9.0f}      ", *(f"{ms:>8.1f}" for ms in others))


if __name__ == "__main__":
    main()
