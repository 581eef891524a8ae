"""What the driver costs beside the bare client, as ratios.

    python -m asyncinfer_drivers.open_inference.measure

Both send the same tensors to the same server, in a process of its own on this host that sends them
back. They take turns, so that whatever else runs here meets both alike; a figure is the median of
the rounds' ratios: of times for the round trip, of calls a second for throughput. The bare client
is tritonclient's ``grpc.aio`` or ``http.aio``. The last figures are seconds: what a
``LocalServerDriver`` takes to open and close.
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

#: what is measured: with so many numbers in a tensor, and so many calls under way
CASES = (
    ("round_trip_600kB", LARGE, 1),
    ("throughput_256B_1", SMALL, 1),
    ("throughput_256B_8", SMALL, 8),
    ("throughput_600kB_4", LARGE, 4),
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
    pair: tuple[Call, Call], rounds: int, calls: int, in_flight: int
) -> list[tuple[float, float]]:
    """Seconds that each of the two takes for so many calls, round by round."""
    found = list[tuple[float, float]]()
    for turn in range(rounds + 1):
        first = await _seconds(pair[turn % 2], calls, in_flight)
        other = await _seconds(pair[1 - turn % 2], calls, in_flight)
        found.append((other, first) if turn % 2 else (first, other))
    return found


async def _seconds(call: Call, calls: int, in_flight: int) -> float:
    async def work() -> None:
        for _ in range(calls // in_flight):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return time.perf_counter() - started


async def measured(protocol: str, url: str, rounds: int, calls: int) -> dict[str, float]:
    """The ratios for one protocol."""
    client = _CLIENTS[protocol].InferenceServerClient(url)
    driver = OpenInferenceDriver(url, "echo", protocol=protocol)
    await driver.open()
    try:
        facts = dict[str, float]()
        for what, size, in_flight in CASES:
            array = np.random.default_rng(42).random((1, size), np.float32)
            pair = bare(protocol, client, array), driven(driver, array)
            count = max(2 * in_flight, calls // (10 if size == LARGE else 1))
            seconds = await alternating(pair, rounds, count, in_flight)
            times = [own / other for other, own in seconds[1:]]  # the first warms up
            ratio = statistics.median(times)
            facts[what] = ratio if what.startswith("round_trip") else 1 / ratio
        return facts
    finally:
        await driver.close()
        await client.close()


async def _measure(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    async with server() as urls:
        found = {which: await measured(which, url, rounds, calls) for which, url in urls.items()}
    return found | {"local_server": await opening()}


async def opening() -> dict[str, float]:
    """Seconds that a server of the driver's own takes to open, and to close."""
    driver, seconds = LocalServerDriver("digits"), dict[str, list[float]](open=[], close=[])
    for _ in range(3):
        for what, step in (("open", driver.open), ("close", driver.close)):
            started = time.perf_counter()
            await step()
            seconds[what].append(time.perf_counter() - started)
    return {f"{what}_seconds": statistics.median(times) for what, times in seconds.items()}


def main() -> None:
    """Print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="turns that each takes")
    parser.add_argument("--calls", type=int, default=200, help="small calls a turn; a tenth large")
    given = parser.parse_args()
    facts = asyncio.run(_measure(given.rounds, given.calls))
    print(json.dumps({k: {n: round(v, 3) for n, v in f.items()} for k, f in facts.items()}))


if __name__ == "__main__":
    main()
