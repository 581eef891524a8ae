"""Streams tasks over many simulated devices in a process of its own, and says what it cost.

``python -m asyncinfer.bench.simulated._scale_child '{"devices": 10, "tasks": 1000, ...}'``
prints one object.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from asyncinfer import theory
from asyncinfer.bench.measure import peak_rss
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.testing import SimulatedDriver, run_virtual

#: service times in seconds, drawn evenly
FASTEST, SLOWEST = 0.01, 0.04


def main(argument: str) -> None:
    """Run what ``argument`` says."""
    print(json.dumps(run_virtual(_stream(**json.loads(argument)))))


async def _stream(
    devices: int, tasks: int, limit: float, seed: int, policy: str, batch: int, call: float
) -> dict[str, Any]:
    """``tasks`` tasks, or as many as are read within ``limit`` seconds of CPU time.

    Devices take up to ``batch`` of them a call, which costs ``call`` seconds on top.
    """
    chance = random.Random(seed)
    times = [chance.uniform(FASTEST, SLOWEST) for _ in range(devices)]
    full = [t + call / batch for t in times]  # seconds per task in full batches
    window = max(1024, batch * theory.window_needed(full))
    drivers = [
        SimulatedDriver(f"{n}", t, max_batch=batch, batch_cost=call) for n, t in enumerate(times)
    ]
    expected = 0
    async with Dispatcher(drivers, policy=policy, window=window) as dispatcher:
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        first, last = float("inf"), 0.0
        async for result in dispatcher.results(_items(tasks, cpu + limit)):
            if result.index != expected:
                raise RuntimeError(f"task {result.index} came in place of {expected}")
            first, last = min(first, result.started), max(last, result.finished)
            expected += 1
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        stats = dispatcher.stats()
    return {
        "tasks": expected,
        "window": window,
        "wall": wall,
        "cpu": cpu,
        "makespan": last - first,
        "optimum": theory.optimum_makespan(full, expected),
        "max_reorder": stats.max_reorder,
        "calls": sum(device.batches for device in stats.devices),
        "peak_rss": peak_rss(),
    }


def _items(tasks: int, until: float) -> Iterator[int]:
    for number in range(tasks):
        if number % 64 == 0 and time.process_time() > until:
            return
        yield number


if __name__ == "__main__":
    main(sys.argv[1])
