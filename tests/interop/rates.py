"""Rates beside Triton's own client, in turns: ``make interop`` prints them, and insists on nothing.

tests/interop/rates.py [SECONDS]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from servers import KServe, MLServer, Running, Triton, install, python_for
from tritonclient.utils import InferenceServerException

from asyncinfer import Dispatcher
from asyncinfer_drivers.open_inference import OpenInferenceDriver

CLIENTS: dict[str, Any] = {"grpc": triton_grpc, "http": triton_http}
ROUNDS = 5


async def ours(
    server: Running, protocol: str, model: str, seconds: float, item: Any, **options: Any
) -> float:
    """Tasks a second of an endless stream."""
    driver = OpenInferenceDriver(server.url(protocol), model, protocol=protocol, **options)
    async with Dispatcher([driver]) as dispatcher, dispatcher.results(_always(item)) as results:
        until, done, began = time.perf_counter() + seconds, 0, time.perf_counter()
        async for result in results:
            assert (
                result.error is None
                or "negative" in str(result.error)
                or "rror" in str(result.error)
            )
            done += 1
            if time.perf_counter() > until:
                break
        assert dispatcher.stats().devices[0].errors == 0
        return done / (time.perf_counter() - began)


def _always(item: Any):
    while True:
        yield item


async def theirs(
    server: Running, protocol: str, model: str, seconds: float, batch: int, calls: int
) -> float:
    """Tasks a second of tritonclient with so many calls in flight, each of ``batch`` tasks."""
    module, done = CLIENTS[protocol], 0
    until, began = time.perf_counter() + seconds, time.perf_counter()
    async with module.InferenceServerClient(server.url(protocol)) as client:

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < until:
                given = module.InferInput("x", [batch, 4], "FP32")
                given.set_data_from_numpy(np.ones((batch, 4), np.float32))
                try:
                    (await client.infer(model, [given])).as_numpy("y")
                    done += batch
                except InferenceServerException:
                    await asyncio.sleep(0.005)

        await asyncio.gather(*(caller() for _ in range(calls)))
    return done / (time.perf_counter() - began)


async def beside(
    one: Callable[[], Awaitable[float]],
    other: Callable[[], Awaitable[float]],
    rounds: int = ROUNDS,
) -> tuple[float, float, float]:
    """Medians of both, and of their ratio, in turns."""
    pairs = [(await one(), await other()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    firsts, others = zip(*pairs, strict=True)
    return statistics.median(firsts), statistics.median(others), statistics.median(ratios)


def told(what: str, figures: tuple[float, float, float]) -> None:
    one, other, ratio = figures
    print(f"{what}: driver {one:.0f}, tritonclient {other:.0f} tasks/s, ratio {ratio:.2f}")


async def at_triton(server: Running, seconds: float) -> None:
    row = np.ones(4, np.float32)
    for protocol in CLIENTS:
        at = server, protocol
        for model, batch, calls in product(("work", "twice"), (1, 8), (1, 2, 8)):
            options = {"max_batch": 32 if batch > 1 else 1, "concurrency": calls}
            figures = await beside(
                partial(ours, *at, model, seconds, row, **options),
                partial(theirs, *at, model, seconds, batch, calls),
            )
            told(f"Triton, {protocol}, {model}, {calls} calls in flight of {batch}", figures)
        figures = await beside(
            partial(ours, *at, "full", 5 * seconds, row, concurrency=8),
            partial(theirs, *at, "full", 2 * seconds, 1, 2),
            rounds=2,  # each refusal has Triton 2.51 stand still for half a second
        )
        told(f"Triton, {protocol}, 8 calls where 2 fit, beside a client with 2", figures)


async def one_in_ten(server: Running, seconds: float) -> None:
    async def timed(protocol: str) -> float:
        items = [np.full(4, -1 if n % 10 == 3 else n, np.float32) for n in range(300)]
        binary = server.name != "mlserver"
        driver = OpenInferenceDriver(
            server.url(protocol), "picky", protocol=protocol, binary=binary
        )
        async with Dispatcher([driver]) as dispatcher:
            began = time.perf_counter()
            failed = [r.index async for r in dispatcher.results(items) if r.error is not None]
            assert failed == list(range(3, 300, 10))
            assert dispatcher.stats().devices[0].faults == 0
            return time.perf_counter() - began

    http, grpc, ratio = await beside(lambda: timed("http"), lambda: timed("grpc"))
    print(
        f"{server.name}, one in ten raises: HTTP {http:.2f} s, gRPC {grpc:.2f} s, ratio {ratio:.2f}"
    )


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="asyncinfer-rates-") as folder:
        for kind in (Triton, KServe, MLServer):
            place = Path(folder) / kind.name
            place.mkdir()
            server = kind(place)
            try:
                if kind is Triton:
                    await at_triton(server, seconds)
                await one_in_ten(server, seconds)
            finally:
                server.stop()


if __name__ == "__main__":
    for name in ("triton", "kserve", "mlserver"):
        install(name, python_for())
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0))
