"""Runs the driver against Triton, KServe and MLServer as they are: a table, feature by server.

``make interop`` runs it. What is expected to differ is explained below the table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from servers import SERVERS, Running, install, python_for

from asyncinfer import Dispatcher
from asyncinfer_drivers.open_inference import OpenInferenceDriver

ROWS = [np.full(4, number + 1, np.float32) for number in range(100)]

#: server, protocol, and whether tensors are sent as bytes
WAYS = (
    ("triton", "grpc", True),
    ("triton", "http", True),
    ("triton", "http", False),
    ("kserve", "grpc", True),
    ("kserve", "http", True),
    ("kserve", "http", False),
    ("mlserver", "grpc", True),
    ("mlserver", "http", False),  # its HTTP refuses binary tensors
)

_NULLS = "null for all: NaN, with a warning", "array([nan, nan, nan,  1.]"
#: what a server cannot do, or does otherwise; and what tells that it is just this
EXPLAINED = {
    ("bfloat16", "triton", "http", False): ("Triton refuses BF16 in JSON", "BF16 data via JSON"),
    ("any bytes", "*", "http", False): ("JSON has texts only", "no UTF-8 cannot go as JSON"),
    ("any bytes", "kserve", "http", True): ("it makes JSON of them within", "Failed to encode"),
    ("any bytes", "mlserver", "grpc", True): ("StringCodec takes UTF-8 only", "can't decode byte"),
    ("NaN, infinities", "kserve", "http", False): _NULLS,
    ("NaN, infinities", "mlserver", "http", False): _NULLS,
    ("NaN, infinities", "mlserver", "grpc", True): (
        "NumpyCodec's null fits no message",
        "required argument is not a float",
    ),
}


class Absent(Exception):
    """The server has no such model."""


class Outcome(NamedTuple):
    """What came of a stream."""

    results: dict[int, Any]
    errors: dict[int, str]
    seconds: float
    device: Any
    driver: OpenInferenceDriver


class Way:
    """One protocol of one running server."""

    def __init__(self, server: Running, protocol: str, binary: bool) -> None:
        self.server, self.protocol, self.binary = server, protocol, binary

    def driver(self, model: str, **options: Any) -> OpenInferenceDriver:
        if model not in self.server.models:
            raise Absent(model)
        url = self.server.url(self.protocol)
        options = {"protocol": self.protocol, "binary": self.binary, **options}
        return OpenInferenceDriver(url, model, **options)

    async def stream(self, model: str, items: list[Any], **options: Any) -> Outcome:
        driver = self.driver(model, **options)
        results, errors = {}, {}
        async with Dispatcher([driver]) as dispatcher:
            began = time.perf_counter()
            async for result in dispatcher.results(items):
                if result.error is None:
                    results[result.index] = result.value
                else:
                    errors[result.index] = str(result.error)
            seconds, device = time.perf_counter() - began, dispatcher.stats().devices[0]
        return Outcome(results, errors, seconds, device, driver)


def right(outcome: Outcome, expected: dict[int, Any]) -> None:
    """Raise unless just these results came, the rest failed, and the device was never lost."""
    assert outcome.results.keys() == expected.keys(), sorted(outcome.errors.values())[:1]
    for index, value in expected.items():
        assert np.array_equal(outcome.results[index], value), (index, outcome.results[index])
    assert outcome.device.state == "ready", outcome.device
    assert outcome.device.faults == 0, outcome.device


def doubled(items: list[Any]) -> dict[int, Any]:
    return {index: 2 * item for index, item in enumerate(items)}


async def single(way: Way) -> None:
    right(await way.stream("twice", ROWS), doubled(ROWS))


async def batches(way: Way) -> None:
    outcome = await way.stream("twice", ROWS * 3, max_batch=32)
    right(outcome, doubled(ROWS * 3))
    most = 8 if way.server.name == "triton" else 32
    assert outcome.driver.max_batch == most, outcome.driver.max_batch
    assert outcome.device.batches <= 300 / most + 4, outcome.device


async def free_shape(way: Way) -> None:
    right(await way.stream("free", ROWS, max_batch=32), doubled(ROWS))


async def no_batches(way: Way) -> None:
    right(await way.stream("whole", ROWS), doubled(ROWS))


async def one_in_ten(way: Way) -> None:
    items = [-row if index % 10 == 3 else row for index, row in enumerate(ROWS * 3)]
    good = {index: 2 * item for index, item in enumerate(items) if item[0] > 0}
    for options in ({}, {"concurrency": 8}, {"max_batch": 8}):
        outcome = await way.stream("picky", items, **options)
        right(outcome, good)


async def one_for_all(way: Way) -> None:
    """One bad request fails a batch that the server made of several."""
    items = [-row if index % 20 == 3 else row for index, row in enumerate(ROWS[:57])]
    good = {index: 2 * item for index, item in enumerate(items) if item[0] > 0}
    right(await way.stream("together", items, concurrency=8), good)


async def full_queue(way: Way) -> None:
    outcome = await way.stream("full", ROWS, concurrency=8)
    right(outcome, doubled(ROWS))
    assert outcome.device.errors == 0


async def no_zeros(way: Way) -> None:
    right(await way.stream("wants", ROWS, max_batch=32), doubled(ROWS))


async def two_inputs(way: Way) -> None:
    items: list[Any] = [{"a": row, "b": row} if row[0] % 2 else {"a": row} for row in ROWS]
    told = [{"name": "a"}, {"name": "b", "optional": True}]
    options = {} if way.server.name == "triton" else {"inputs": told}
    outcome = await way.stream("two", items, max_batch=8, **options)
    sums = {index: value["sum"] for index, value in outcome.results.items()}
    expected = {index: row * (2 if row[0] % 2 else 1) for index, row in enumerate(ROWS)}
    right(outcome._replace(results=sums), expected)


async def texts(way: Way) -> None:
    items = [[f"h\u00e9 {number}"] for number in range(20)]
    outcome = await way.stream("text", items, max_batch=4)
    expected = {index: np.array([text.encode()], object) for index, (text,) in enumerate(items)}
    right(outcome, expected)


async def any_bytes(way: Way) -> None:
    right(await way.stream("text", [[b"\xff\0a"]]), {0: np.array([b"\xff\0a"], object)})


async def bfloat16(way: Way) -> None:
    """Rounded to the nearest, and given as FP32."""
    item = np.float32([1.5, 1 / 3, -3e38, 257])
    rounded = item.astype(ml_dtypes.bfloat16).astype(np.float32)
    outcome = await way.stream("half", [item] * 10, max_batch=4)
    right(outcome, dict.fromkeys(range(10), rounded))
    assert outcome.results[0].dtype == np.float32


async def not_finite(way: Way) -> None:
    outcome = await way.stream("odd", ROWS[:1])
    assert not outcome.errors, outcome.errors[0]
    expected = np.float32([np.nan, np.inf, -np.inf, 1])
    assert np.array_equal(outcome.results[0], expected, equal_nan=True), outcome.results


async def wrong_shape(way: Way) -> None:
    said = [{"name": "y", "shape": [-1, 1]}]
    outcome = await way.stream("flat", ROWS, outputs=said, overrule=True, max_batch=4)
    right(outcome, {index: row.sum(keepdims=True) for index, row in enumerate(ROWS)})


async def killed(way: Way) -> None:
    """The server is killed in mid-stream, and started again: nothing is lost."""
    driver, outputs = way.driver("twice", max_batch=4), []
    async with Dispatcher([driver], retries=100) as dispatcher:
        async for output in dispatcher.stream(ROWS * 30):
            outputs.append(output)
            if len(outputs) == 500:
                await asyncio.to_thread(way.server.kill)
                await asyncio.to_thread(way.server.start)
    assert np.array_equal(outputs, 2 * np.array(ROWS * 30))


FEATURES: dict[str, Callable[[Way], Awaitable[None]]] = {
    "one task a request": single,
    "max_batch=32 with its limit": batches,
    "a shape that is not fixed": free_shape,
    "a model without batches": no_batches,
    "one in ten raises": one_in_ten,
    "one fails the server's batch": one_for_all,
    "a full queue": full_queue,
    "a model that refuses zeros": no_zeros,
    "two inputs, one optional": two_inputs,
    "texts": texts,
    "any bytes": any_bytes,
    "bfloat16": bfloat16,
    "NaN, infinities": not_finite,
    "metadata that is wrong": wrong_shape,
    "killed in mid-stream": killed,
}


async def tried(feature: str, way: Way) -> tuple[str, str]:
    """The mark for the table, and what there is to say."""
    try:
        await asyncio.wait_for(FEATURES[feature](way), 120)
    except Absent:
        return "-", ""
    except Exception as error:
        server, text = way.server.name, f"{type(error).__name__}: {error}"
        for name in (server, "*"):
            why, sign = EXPLAINED.get((feature, name, way.protocol, way.binary), ("", ""))
            if why and sign in text:
                return "(1)", why
        return "WRONG", text[:600]
    return "ok", ""


def shown(way: tuple[str, str, bool]) -> str:
    server, protocol, binary = way
    return f"{server} {protocol if binary or protocol == 'grpc' else 'json'}"


async def main(names: list[str], features: list[str]) -> int:
    ways = [way for way in WAYS if way[0] in names]
    notes, wrong = list[str](), 0
    table = {feature: list[str]() for feature in features}
    with tempfile.TemporaryDirectory(prefix="asyncinfer-interop-") as folder:
        for name in names:
            place = Path(folder) / name
            place.mkdir()
            server = SERVERS[name](place)
            try:
                for way in (way for way in ways if way[0] == name):
                    for feature in features:
                        mark, text = await tried(feature, Way(server, *way[1:]))
                        table[feature].append(mark)
                        wrong += mark == "WRONG"
                        if text:
                            notes.append(f"{feature}, {shown(way)}: {text}")
            finally:
                server.stop()
    print(f"| | {' | '.join(map(shown, ways))} |\n|---|{'---|' * len(ways)}")
    for feature, marks in table.items():
        print(f"| {feature} | {' | '.join(marks)} |")
    print("\n".join(["", "-: the server has no such model; (1): explained here", *notes]))
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    chosen = parser.parse_args()
    for server in chosen.servers:
        install(server, python_for())
    sys.exit(bool(asyncio.run(main(chosen.servers, chosen.features))))
