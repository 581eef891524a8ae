"""What one dispatcher gets through a Ray cluster: tasks a second, bytes a second, devices.

The model returns its input, so that only the way there and back is measured; beside it the same
number of calls in flight with Ray alone. Actors claim no CPU: many may share this host's cores.

    python examples/ray_limits.py [--devices 1 4] [--seconds 3] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from typing import Any

import numpy as np

from asyncinfer import Dispatcher
from asyncinfer_drivers.ray_cluster import RayDriver, ray_drivers

#: of one tensor, in each direction
BYTES = 600_000
#: batches that many tasks share one call and one way there and back
BATCH = 64


def echo(x: Any) -> Any:
    """The model."""
    return x


async def through_dispatcher(drivers: list[RayDriver], item: Any, seconds: float) -> dict[str, Any]:
    """Results a second, in order, and the longest time the event loop stood still."""
    async with Dispatcher(drivers, wait_for="all") as dispatcher:
        await warm(dispatcher, item, drivers)
        ticker = asyncio.ensure_future(worst_lag())
        started, count = time.perf_counter(), 0
        async with dispatcher.stream(itertools.repeat(item)) as stream:
            async for _ in stream:
                count += 1
                if time.perf_counter() - started > seconds:
                    break
        rate = count / (time.perf_counter() - started)
        ticker.cancel()
        lags = await ticker
    return {"tasks/s": round(rate), "lag p99 ms": round(lags, 1)}


async def warm(dispatcher: Dispatcher[Any, Any], item: Any, drivers: list[RayDriver]) -> None:
    """Let the scheduler see every device work."""
    tasks = 8 * sum(driver.max_batch for driver in drivers)
    async for _ in dispatcher.stream(itertools.repeat(item, tasks)):
        pass


async def worst_lag() -> float:
    """The 99th percentile of a 1 ms ticker's lag until it is cancelled, in milliseconds."""
    lags = [0.0]
    try:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - due)
    except asyncio.CancelledError:
        return 1000 * sorted(lags)[int(0.99 * (len(lags) - 1))]


async def bare(count: int, item: Any, batch: int, seconds: float) -> float:
    """Tasks a second of as many actors with two calls in flight each, and nothing around them."""
    import ray

    class Bare:
        async def run(self, items: Any) -> Any:
            return items

    kind: Any = ray.remote(Bare)
    actors = [kind.options(num_cpus=0).remote() for _ in range(count)]
    await asyncio.gather(*(actor.run.remote(None) for actor in actors))
    items = np.stack([item] * batch) if isinstance(item, np.ndarray) else [item] * batch
    over, done = time.perf_counter() + seconds, 0

    async def keep(actor: Any) -> None:
        nonlocal done
        while time.perf_counter() < over:
            await actor.run.remote(items)
            done += batch

    await asyncio.gather(*(keep(actor) for actor in actors for _ in range(2)))
    for actor in actors:
        ray.kill(actor)
    return done / seconds


async def measure(counts: list[int], seconds: float) -> list[dict[str, Any]]:
    """One row for each load and number of devices."""
    rows = list[dict[str, Any]]()
    picture = np.random.default_rng(42).integers(0, 255, BYTES, np.uint8)
    loads: list[tuple[str, Any, int]] = [
        ("numbers, one by one", 1, 1),
        (f"numbers, batches of {BATCH}", 1, BATCH),
        (f"{BYTES // 1000} KB arrays, one by one", picture, 1),
        (f"{BYTES // 1000} KB arrays, batches of 8", picture, 8),
    ]
    keeper = RayDriver(echo, name="keeper", num_cpus=0)  # keeps the cluster until the end
    await keeper.open()
    try:
        for (load, item, batch), count in itertools.product(loads, counts):
            drivers = ray_drivers(count, echo, num_cpus=0, max_batch=batch)
            ours = await through_dispatcher(drivers, item, seconds)
            alone = await bare(count, item, batch, seconds)
            row = {"load": load, "devices": count, **ours, "Ray alone": round(alone)}
            row["ratio"] = round(ours["tasks/s"] / alone, 2)
            if isinstance(item, np.ndarray):
                row["MB/s each way"] = round(ours["tasks/s"] * BYTES / 1e6)
            rows.append(row)
    finally:
        await keeper.close()
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    for row in rows:
        load, count, *rest = row.items()
        facts = ", ".join(f"{key} {value}" for key, value in rest)
        print(f"{load[1]:<28} {count[1]:>3} devices: {facts}")


def main() -> None:
    """Measure on the cluster there is, or a local one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(measure(options.devices, options.seconds))
    if options.json:
        print(json.dumps(rows))
    else:
        show(rows)


if __name__ == "__main__":
    main()
