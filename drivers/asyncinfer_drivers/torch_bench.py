"""Compares the torch driver with bare loops: ``python -m asyncinfer_drivers.torch_bench MODEL``.

``MODEL`` is a built-in model's name, or ``small_net``. The naive loop, the best bare loop and
``Dispatcher.stream`` over the driver take turns; a ticker on the event loop tells how late it is.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from asyncinfer import Dispatcher
from asyncinfer_drivers import torch_loops
from asyncinfer_drivers.models.small_net import build as build_small_net
from asyncinfer_drivers.torch_host import TorchDriver

__all__ = ("main",)

#: seconds between two ticks
_TICK = 0.001


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--drivers", type=int, default=1)
    parser.add_argument("--isolation", choices=("thread", "process"), default="thread")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--count", type=int, default=512, help="different inputs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    options = parser.parse_args(arguments)
    print(json.dumps(asyncio.run(_measure(options)), indent=2))


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    model = build_small_net() if options.model == "small_net" else options.model
    inputs = torch_loops.inputs_of(options.model, options.count)
    settings = await asyncio.to_thread(torch_loops.tune, model, inputs)
    loop = await asyncio.to_thread(torch_loops.prepared_loop, model, inputs, settings)
    drivers = [
        TorchDriver(
            model,
            name=f"cpu-{number}",
            threads=1,
            max_batch="auto",
            concurrency=options.concurrency,
            isolation=options.isolation,
            warmup_input=inputs[0],
        )
        for number in range(options.drivers)
    ]
    rates: dict[str, list[torch_loops.Rate]] = {"naive": [], "bare": [], "stream": []}
    lags: dict[str, list[float]] = {name: [] for name in rates}
    async with Dispatcher(drivers, window=8192, queue_size=8192, wait_for="all") as dispatcher:
        for driver in drivers:
            await driver.tune()
        for _ in range(options.turns):
            for name, threads in (("naive", 1), ("naive", None)):
                rate = await asyncio.to_thread(
                    torch_loops.naive_loop,
                    model,
                    inputs,
                    seconds=options.seconds / 4,
                    threads=threads,
                )
                rates[name].append(rate)
            with _ticking(lags["bare"]):
                rates["bare"].append(await asyncio.to_thread(loop.run, options.seconds))
            count = max(len(inputs), int(rates["bare"][-1].images_per_second * options.seconds))
            with _ticking(lags["stream"]):
                rates["stream"].append(await _stream(dispatcher, inputs, count))
    torch_loops.check_same(rates["stream"][0].outputs, rates["bare"][0].outputs)
    return {
        "model": options.model,
        "best_settings": asdict(settings),
        "drivers": {driver.name: dict(driver.details) for driver in drivers},
        "images_per_second": _medians(rates, _wall),
        "images_per_cpu_second": _medians(rates, _cpu),
        "stream_to_bare": _ratio(rates["stream"], rates["bare"], _wall),
        "stream_to_bare_by_cpu": _ratio(rates["stream"], rates["bare"], _cpu),
        "stream_to_naive": _best(rates["stream"]) / _best(rates["naive"]),
        "lag_p99_ms": {name: _p99(lags[name]) * 1e3 for name in ("bare", "stream")},
    }


async def _stream(
    dispatcher: Dispatcher[Any, Any], inputs: Sequence[Any], count: int
) -> torch_loops.Rate:
    outputs: list[Any] = []
    done = 0
    started, cpu = time.perf_counter(), time.process_time()
    async for output in dispatcher.stream(itertools.islice(itertools.cycle(inputs), count)):
        done += 1
        if done <= len(inputs):
            outputs.append(output)
    elapsed, used = time.perf_counter() - started, time.process_time() - cpu
    return torch_loops.Rate(done / elapsed, done / used, outputs)


@contextmanager
def _ticking(lags: list[float]) -> Iterator[None]:
    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_TICK)
            lags.append(time.perf_counter() - started - _TICK)

    ticker = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticker.cancel()


def _wall(rate: torch_loops.Rate) -> float:
    return rate.images_per_second


def _cpu(rate: torch_loops.Rate) -> float:
    return rate.images_per_cpu_second


def _medians(
    rates: dict[str, list[torch_loops.Rate]], measure: Callable[[torch_loops.Rate], float]
) -> dict[str, float]:
    return {name: statistics.median(map(measure, some)) for name, some in rates.items()}


def _ratio(
    some: list[torch_loops.Rate],
    others: list[torch_loops.Rate],
    measure: Callable[[torch_loops.Rate], float],
) -> float:
    """The median ratio of turns beside each other."""
    pairs = zip(some, others, strict=True)
    return statistics.median(measure(one) / measure(other) for one, other in pairs)


def _best(rates: list[torch_loops.Rate]) -> float:
    return max(rate.images_per_second for rate in rates)


def _p99(lags: list[float]) -> float:
    return sorted(lags)[int(0.99 * len(lags))] if lags else 0.0


if __name__ == "__main__":
    main()
