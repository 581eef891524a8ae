"""Once a result was delivered, the core holds neither its input nor its output."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer.errors import DeviceLost, TaskError
from asyncinfer.testing import SimulatedDriver


class Thing:
    """An input, or an output, of the user's."""

    def __init__(self, of=None):
        self.of = of


class Made:
    """Makes things, and tells which of them are still there."""

    def __init__(self):
        self.refs = []

    def one(self, of=None):
        thing = Thing(of)
        self.refs.append(weakref.ref(thing))
        return thing

    def __iter__(self):
        for n in range(12):
            yield self.one(n)

    @property
    def left(self):
        return sum(ref() is not None for ref in self.refs)


class Plain(SimulatedDriver):
    """Keeps nothing of its own, unlike devices that note what they were asked."""

    def __init__(self, name, made, seconds=0.01, **options):
        super().__init__(name, seconds, **options)
        self.made = made
        self.faults = []

    async def infer(self, batch):
        outputs = [self.made.one() for _ in batch]
        await asyncio.sleep(self.service_time)
        if self.faults:
            raise self.faults.pop()
        return outputs


async def quiet():
    for _ in range(3):
        await asyncio.sleep(0.001)


async def drained(stream, *, catch=False):
    count = 0
    while True:
        try:
            item = await anext(stream)
        except StopAsyncIteration:
            return count
        except TaskError:
            assert catch
        else:
            del item
        count += 1


async def streamed(d, made):
    assert await drained(d.stream(made)) == 12


async def streamed_unordered(d, made):
    assert await drained(d.stream(made, ordered=False)) == 12


async def told_as_results(d, made):
    assert await drained(d.results(made)) == 12


async def with_a_named_stream(d, made):
    async with d.stream(made) as stream:
        await drained(stream)


async def called(d, made):
    for x in made:
        await d.infer(x)
        del x


async def called_at_once(d, made):
    await asyncio.gather(*(d.infer(x) for x in made))


async def left_early(d, made):
    async for y in d.stream(made):
        del y
        break


async def cancelled(d, made):
    call = asyncio.create_task(d.infer(made.one()))
    await asyncio.sleep(0.005)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


async def reader_cancelled(d, made):
    reader = asyncio.create_task(drained(d.stream(made)))
    await asyncio.sleep(0.015)
    reader.cancel()
    with suppress(asyncio.CancelledError):
        await reader


WORK = [
    streamed,
    streamed_unordered,
    told_as_results,
    with_a_named_stream,
    called,
    called_at_once,
    left_early,
    cancelled,
    reader_cancelled,
]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("seconds", [0.01, 1e-5])
def test_what_was_delivered_is_not_kept(virtual, work, max_batch, seconds):
    made = Made()

    async def run():
        devices = [Plain(name, made, seconds, max_batch=max_batch) for name in "ab"]
        async with Dispatcher(devices) as d:
            await work(d, made)
            await asyncio.sleep(1.0)
            await quiet()
            return made.left

    gc.collect()
    gc.disable()
    try:
        left = virtual(run())
    finally:
        gc.enable()
    assert made.refs
    assert left == 0


FAULTS = {
    "the model raises": lambda: [ValueError("bad")] * 3,
    "the device is lost": lambda: [DeviceLost("a")] * 2,
}


@pytest.mark.parametrize("work", [streamed, told_as_results, called, called_at_once])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"hedge": True}], ids=str)
def test_what_was_tried_again_is_not_kept(virtual, work, fault, max_batch, options):
    made = Made()

    async def run():
        devices = [Plain(name, made, max_batch=max_batch) for name in "ab"]
        devices[0].faults = FAULTS[fault]()
        async with Dispatcher(devices, retries=9, **options) as d:
            await work(d, made)
            await asyncio.sleep(9.0)
            await quiet()
            gc.collect()
            return made.left

    assert virtual(run()) == 0


@pytest.mark.parametrize("work", [streamed, told_as_results, called_at_once])
def test_what_was_copied_is_not_kept(virtual, work):
    made = Made()

    async def run():
        devices = [Plain(name, made) for name in "ab"]
        async with Dispatcher(devices, hedge=Hedge(budget=1.0)) as d:
            await work(d, made)
            devices[0].service_time = 5.0
            await work(d, made)
            assert d.stats().hedging.started
            await asyncio.sleep(9.0)
            await quiet()
            gc.collect()
            return made.left

    assert virtual(run()) == 0


@pytest.mark.parametrize("limits", [Timeouts(total=0.015), Timeouts(queue=0.015)], ids=str)
def test_what_came_too_late_is_not_kept(virtual, limits):
    made = Made()

    async def run():
        async with Dispatcher([Plain("a", made, 0.01)], timeout=limits) as d:
            got = await asyncio.gather(*(d.infer(x) for x in made), return_exceptions=True)
            assert any(isinstance(one, TaskError) for one in got)
            del got
            await quiet()
            gc.collect()
            return made.left

    assert virtual(run()) == 0


class Leaving(Exception):
    pass


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("way", ["drained", "cancelled", "closed"])
def test_a_dispatcher_that_was_left_keeps_nothing(virtual, work, way):
    made = Made()

    async def run():
        devices = [Plain(name, made, max_batch=4) for name in "ab"]
        d = Dispatcher(devices)
        with suppress(Leaving):
            async with d:
                await work(d, made)
                stream = d.stream(made)
                await anext(stream)
                if way == "closed":
                    await d.close()
                if way == "cancelled":
                    raise Leaving
                await drained(stream, catch=True) if way == "drained" else None
        await quiet()
        gc.collect()
        return made.left

    assert virtual(run()) == 0
