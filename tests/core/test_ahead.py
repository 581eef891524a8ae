"""How many bytes a source is read ahead of the devices."""

from __future__ import annotations

import array
import asyncio
import math
from collections import namedtuple

import pytest

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.tasks.size import DEPTH, UNKNOWN, size_of
from asyncinfer.config import load
from asyncinfer.errors import ConfigError
from asyncinfer.testing import SimulatedDriver

MIB = 2**20
Pair = namedtuple("Pair", "left right")


class Lazy:
    """Says how large it is, as tensors of any library do."""

    nbytes = 3 * MIB


class Rude:
    @property
    def nbytes(self):
        raise RuntimeError("not now")


class Picture:
    width, height = 100, 50

    def getbands(self):
        return ("R", "G", "B")


@pytest.mark.parametrize(
    ("x", "least", "most"),
    [
        (1, 0, 0),
        (None, 0, 0),
        (b"x" * 5000, 5000, 5000),
        (bytearray(5000), 5000, 5000),
        (memoryview(array.array("d", [0.0] * 100)), 800, 800),
        ("x" * 5000, 5000, 5100),
        (Lazy(), 3 * MIB, 3 * MIB),
        (Picture(), 15_000, 15_000),
        ({"a": Lazy(), "b": b"x" * MIB}, 4 * MIB, 4 * MIB + 100),
        ((Lazy(), [Lazy(), Lazy()]), 9 * MIB, 9 * MIB + 100),
        (Pair(Lazy(), 1), 3 * MIB, 3 * MIB + 100),
        ([b"x" * 1000] * 5000, 5_000_000, 5_100_000),
        ([0.5] * 100_000, 800_000, 800_000),
        (object(), UNKNOWN, UNKNOWN),
        (Rude(), UNKNOWN, UNKNOWN),
    ],
)
def test_an_input_counts_what_it_holds(x, least, most):
    assert least <= size_of(x) <= most


def test_what_holds_itself_has_a_size():
    x: list[object] = []
    x.append(x)
    assert size_of(x) <= UNKNOWN + 8 * DEPTH


def read_ahead(virtual, inputs, *, kind, **options):
    """How many inputs, and bytes, were at most read and not given to the device; its answers."""

    async def run():
        read, begun, most = [], [], [0, 0]

        def note(x):
            read.append(x)
            waits = read[len(begun) :]
            most[:] = max(most[0], len(waits)), max(most[1], sum(map(len, waits)))

        def generator():
            for x in inputs:
                note(x)
                yield x

        async def async_generator():
            for x in inputs:
                note(x)
                yield x

        class Device(SimulatedDriver):
            async def infer(self, batch):
                begun.extend(batch)
                return await super().infer(batch)

        device = Device("a", 0.01, max_batch=options.pop("max_batch", 1), function=len)
        async with Dispatcher([device], **options) as d:
            source = generator() if kind == "sync" else async_generator()
            return most, [y async for y in d.stream(source)]

    return virtual(run())


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("room", [{}, {"window": 3}, {"window": 2, "queue_size": 2}])
def test_a_source_is_read_no_further_than_the_bound(virtual, kind, max_batch, room):
    inputs = [bytes(MIB)] * 60
    options = {"kind": kind, "max_batch": max_batch, "queue_bytes": 5 * MIB, **room}
    (tasks, size), got = read_ahead(virtual, inputs, **options)
    assert tasks <= 5 + 1
    assert size <= 6 * MIB
    assert got == [MIB] * 60


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_inputs_of_all_sizes_are_counted_as_they_come(virtual, kind):
    inputs = [bytes(n % 7 * 1000 if n % 50 else 300_000) for n in range(400)]
    (_, size), got = read_ahead(virtual, inputs, kind=kind, queue_bytes=100_000)
    assert size <= 100_000 + 300_000 + 10_000
    assert got == [len(x) for x in inputs]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_input_that_is_larger_than_the_bound_goes_through(virtual, kind):
    (tasks, _), got = read_ahead(virtual, [bytes(MIB)] * 9, kind=kind, queue_bytes=1)
    assert tasks == 1
    assert got == [MIB] * 9


def test_the_next_input_is_read_while_the_device_runs(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 1.0)], queue_bytes=1) as d:
            got = [y async for y in d.stream(iter([bytes(9)] * 5))]
            return len(got), asyncio.get_running_loop().time()

    assert virtual(run()) == (5, 5.0)


def test_by_default_large_inputs_are_not_read_ahead_by_thousands(virtual):
    class Large(bytes):
        def __len__(self):
            return 25 * MIB

    (tasks, _), _ = read_ahead(virtual, [Large()] * 200, kind="sync")
    assert 20 <= tasks <= 22
    (tasks, _), _ = read_ahead(virtual, [Large()] * 200, kind="sync", queue_bytes=None)
    assert tasks > 150


def test_tasks_that_end_while_they_wait_make_room(virtual):
    async def run():
        device = SimulatedDriver("a", 1.0)
        async with Dispatcher([device], timeout=Timeouts(queue=0.5), queue_bytes=2500) as d:
            return [type(r.error).__name__ async for r in d.results(iter([bytes(1000)] * 9))]

    got = virtual(run())
    assert len(got) == 9
    assert got.count("QueueTimeout") >= 6


@pytest.mark.parametrize("value", [0, -1, 1.5, "1 GB", True])
def test_the_bound_is_a_number_of_bytes(value):
    with pytest.raises(ConfigError, match="queue_bytes must be a whole number of 1 or more"):
        Dispatcher([], queue_bytes=value)


@pytest.mark.parametrize(
    ("text", "well"), [("1", True), ("inf", True), ("0", False), ("'x'", False)]
)
def test_a_config_may_set_it(tmp_path, text, well):
    path = tmp_path / "devices.toml"
    path.write_text(f"[dispatcher]\nqueue_bytes = {text}\n")
    if not well:
        with pytest.raises(ConfigError, match="queue_bytes"):
            load(path)
        return
    given = load(path).dispatcher
    assert given["queue_bytes"] == (math.inf if text == "inf" else int(text))
    Dispatcher([], **given)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("queue_size", [1, 1024])
def test_no_device_waits_for_a_fuller_batch_while_nothing_more_may_be_read(
    virtual, kind, queue_size
):
    async def generated(inputs):
        for x in inputs:
            yield x

    async def run():
        device = SimulatedDriver("a", 0.01, max_batch=64, max_wait=10.0)
        inputs = (bytes(MIB) for _ in range(20))
        source = inputs if kind == "sync" else generated(inputs)
        async with Dispatcher([device], queue_bytes=3 * MIB, queue_size=queue_size) as d:
            started = asyncio.get_running_loop().time()
            assert len([y async for y in d.stream(source)]) == 20
            return asyncio.get_running_loop().time() - started

    assert virtual(run()) < 1.0
