"""What the driver costs beside the bare client, as ratios.

    python -m asyncinfer_drivers.open_inference.measure

Both send the same tensors to the same server, in a process of its own on this host that sends them
back. They take short turns, so that whatever else runs here meets both alike. A figure is the
median of the rounds' ratios: of times for the round trip, of calls a second for throughput. ``low``
and ``high`` enclose it with 95 % confidence. The bare client is tritonclient's ``grpc.aio`` or
``http.aio``. The last figures are seconds: what a ``LocalServerDriver`` takes to open and close.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import tritonclient.grpc.aio
import tritonclient.http.aio

from asyncinfer_drivers.open_inference import OpenInferenceDriver
from asyncinfer_drivers.open_inference.local import LocalServerDriver

__all__ = ("main", "measured")

#: float32 numbers in the large tensor, 600 kB, and in the small one, 256 B
LARGE, SMALL = 150_000, 64
_CLIENTS = {"grpc": tritonclient.grpc.aio, "http": tritonclient.http.aio}

#: what is measured: numbers in a tensor, calls under way, and calls one after another in a turn
CASES = (
    ("round_trip_600kB", LARGE, 1, 4),
    ("throughput_256B_1", SMALL, 1, 20),
    ("throughput_256B_8", SMALL, 8, 10),
    ("throughput_600kB_4", LARGE, 4, 4),
)

Call = Callable[[], Awaitable[Any]]


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[dict[str, str]]:
    """The echo server's address for each protocol."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncinfer_drivers.open_inference.echo",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        ports = (await process.stdout.readline()).split()
        yield dict(zip(("grpc", "http"), (f"127.0.0.1:{int(port)}" for port in ports), strict=True))
    finally:
        process.kill()
        await process.communicate()


def bare(protocol: str, client: Any, array: Any) -> Call:
    """A call as a user of tritonclient writes it."""
    module = _CLIENTS[protocol]

    async def call() -> Any:
        given = module.InferInput("x", array.shape, "FP32")
        given.set_data_from_numpy(array)
        return (await client.infer("echo", [given])).as_numpy("y")

    return call


def driven(driver: OpenInferenceDriver, array: Any) -> Call:
    """The same through the driver."""
    return lambda: driver.infer([array[0]])


async def alternating(
    pair: tuple[Call, Call], seconds: float, in_flight: int, calls: int
) -> list[float]:
    """Time of the second over time of the first, round by round, for that many seconds."""
    found, end = list[float](), time.perf_counter() + seconds
    while len(found) < 2 or time.perf_counter() < end:
        first = len(found) % 2  # the one that was last is first now: both start cold equally often
        times = {turn: await _seconds(pair[turn], in_flight, calls) for turn in (first, 1 - first)}
        found.append(times[1] / times[0])
    return found[1:]  # the first warms up


async def _seconds(call: Call, in_flight: int, calls: int) -> float:
    async def work() -> None:
        for _ in range(calls):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return time.perf_counter() - started


def median(ratios: list[float]) -> dict[str, float]:
    """The median, and between which of the sorted values it is with 95 % confidence."""
    ordered, count = sorted(ratios), len(ratios)
    # 1.96 standard deviations of the number of heads in `count` throws of a coin
    off = round(1.96 * count**0.5 / 2)
    low, high = max(0, count // 2 - off), min(count - 1, (count - 1) // 2 + off)
    found = {"median": statistics.median(ordered), "low": ordered[low], "high": ordered[high]}
    return {which: round(ratio, 3) for which, ratio in found.items()}


async def measured(protocol: str, url: str, seconds: float) -> dict[str, dict[str, float]]:
    """The ratios for one protocol, with so many seconds for each."""
    client = _CLIENTS[protocol].InferenceServerClient(url)
    driver = OpenInferenceDriver(url, "echo", protocol=protocol)
    await driver.open()
    try:
        facts = dict[str, dict[str, float]]()
        for what, size, in_flight, calls in CASES:
            array = np.random.default_rng(42).random((1, size), np.float32)
            pair = bare(protocol, client, array), driven(driver, array)
            times = await alternating(pair, seconds, in_flight, calls)
            is_time = what.startswith("round_trip")
            facts[what] = median(times if is_time else [1 / ratio for ratio in times])
        return facts
    finally:
        await driver.close()
        await client.close()


async def _measure(seconds: float) -> dict[str, dict[str, Any]]:
    async with server() as urls:
        found = {which: await measured(which, url, seconds) for which, url in urls.items()}
    return {**found, "local_server_seconds": await opening()}


async def opening() -> dict[str, float]:
    """Seconds that a server of the driver's own takes to open, and to close."""
    driver, seconds = LocalServerDriver("digits"), dict[str, list[float]](open=[], close=[])
    for _ in range(3):
        for what, step in (("open", driver.open), ("close", driver.close)):
            started = time.perf_counter()
            await step()
            seconds[what].append(time.perf_counter() - started)
    return {what: round(statistics.median(times), 3) for what, times in seconds.items()}


def main() -> None:
    """Print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="for each of the eight ratios")
    given = parser.parse_args()
    facts = asyncio.run(_measure(given.seconds))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
