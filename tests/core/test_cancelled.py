"""Whoever is cancelled leaves nothing half done: readers, sources, adding and removing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import weakref

import anyio
import inside
import pytest
from fakes import Doored

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import ClosedError, ConfigError, TaskError
from asyncinfer.testing import SimulatedDriver

# ---- readers


async def kept_task(read, keep):
    keep.append(task := asyncio.create_task(read()))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])


async def kept_error(read, keep):
    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        keep.append(error)


async def kept_timeout(read, keep):
    try:
        async with asyncio.timeout(0.05):
            await read()
    except TimeoutError as error:
        keep.append(error)


async def kept_wait_for(read, keep):
    try:
        await asyncio.wait_for(read(), 0.05)
    except TimeoutError as error:
        keep.append(error)


async def task_group(read, keep):
    async def fail():
        await asyncio.sleep(0.05)
        raise KeyError

    try:
        async with asyncio.TaskGroup() as group:
            keep.append(group.create_task(read()))
            group.create_task(fail())
    except* KeyError as errors:
        keep.append(errors)


async def anyio_group(read, keep):
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.sleep(0.05)
            raise KeyError
    except* KeyError as errors:
        keep.append(errors)


async def anyio_scope(read, keep):
    with anyio.move_on_after(0.05) as scope:
        await read()
    keep.append(scope)


async def gathered(read, keep):
    keep.append(both := asyncio.gather(read(), asyncio.sleep(9), return_exceptions=True))
    await asyncio.sleep(0.05)
    both.cancel()
    await asyncio.wait([both])


WAYS = [
    kept_task,
    kept_error,
    kept_timeout,
    kept_wait_for,
    task_group,
    anyio_group,
    anyio_scope,
    gathered,
]


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("kind", ["stream", "results"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_reader_ends_its_stream_though_it_is_kept(way, kind, in_body):
    async with Dispatcher([SimulatedDriver("a", 0.001 if in_body else 5.0)]) as d:

        async def read():
            async for _ in getattr(d, kind)(range(1000)):
                await asyncio.sleep(9 if in_body else 0)

        keep = []
        gc.disable()
        try:
            await way(read, keep)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(inside.lanes(d)) == 1
        finally:
            gc.enable()
        assert keep


async def test_a_cancelled_task_does_not_keep_a_stream_that_has_a_name():
    async with Dispatcher([SimulatedDriver("a", 0.001)]) as d:

        async def read():
            stream = d.stream(range(1000))
            async for _ in stream:
                await asyncio.sleep(9)

        keep = []
        await kept_task(read, keep)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(inside.lanes(d)) == 1


async def test_one_who_closes_a_stream_knows_that_it_ended_and_others_are_told():
    async with Dispatcher([SimulatedDriver("a", 0.0)]) as d:
        stream = d.stream(range(100))
        assert await anext(stream) == 0
        await asyncio.create_task(stream.aclose())
        for _ in range(2):
            with pytest.raises(ClosedError, match="another task"):
                await anext(stream)
        whole = d.stream(range(3))
        assert [await anext(whole) for _ in range(3)] == [0, 1, 2]
        await asyncio.sleep(0.01)  # the source ends
        await asyncio.create_task(whole.aclose())
        with pytest.raises(StopAsyncIteration):
            await anext(whole)


async def test_a_source_that_is_cancelled_is_not_a_dispatcher_that_is_closed():
    async def source():
        yield 1
        raise asyncio.CancelledError("mine")

    async with Dispatcher([SimulatedDriver("a", 0.0)]) as d:
        stream = d.stream(source())
        assert await anext(stream) == 1
        with pytest.raises(RuntimeError, match="it raised CancelledError") as caught:
            await anext(stream)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)


# ---- errors


class Large(bytearray):
    """An input that a weak reference tells of."""


class Raises(SimulatedDriver):
    async def infer(self, batch):
        copy = [Large(one) for one in batch]
        alive.extend(map(weakref.ref, copy))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error


alive = []


async def test_a_kept_error_keeps_no_input_and_tells_the_line():
    alive.clear()
    gc.disable()
    try:
        async with Dispatcher([Raises("a", 0.0)], retries=1) as d:
            kept = [y async for y in d.stream((Large(9) for _ in range(5)), return_exceptions=True)]
            value = Large(9)
            alive.append(weakref.ref(value))
            with pytest.raises(TaskError) as caught:
                await d.infer(value)
            del value
            kept.append(caught.value)
            caught = None
            for error in kept:
                for cause in error.causes:
                    assert cause.__traceback__ is None
                    assert sum("in infer" in note for note in cause.__notes__) == 1
            with pytest.raises(TaskError):  # the last burst is the dispatcher's to keep
                await d.infer(b"small")
            assert [one for one in alive if one() is not None] == []
    finally:
        gc.enable()


# ---- devices


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("after", [0.0, 0.3, 1.2])
def test_a_cancelled_remove_happens_or_can_be_asked_again(virtual, drain, after):
    async def run():
        a = Doored("a", 1.0)
        async with Dispatcher([a, SimulatedDriver("b", 1.0)]) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(2)]
            await asyncio.sleep(0.1)
            with anyio.move_on_after(after):
                await d.remove("a", drain=drain)
            assert await asyncio.gather(*calls) == [0, 1]
            await asyncio.sleep(5)
            assert not a.is_open
            assert [one.name for one in d.stats().devices] == ["b"]
            with pytest.raises(ConfigError):
                await d.remove("a")
            await d.add(Doored("a"))

    virtual(run())


class Slow(SimulatedDriver):
    async def open(self):
        await asyncio.sleep(1)
        await super().open()

    async def close(self):
        await asyncio.sleep(1)
        await super().close()


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5])
def test_a_cancelled_add_can_be_asked_again_at_once(virtual, after):
    async def run():
        async with Dispatcher([SimulatedDriver("b", 0.0)], timeout=Timeouts(close=3)) as d:
            for again in range(2):
                adding = asyncio.create_task(d.add(Slow("a", 0.0)))
                await asyncio.sleep(0 if again else after)
                adding.cancel()
                await asyncio.sleep(0)
                adding.cancel()
                await asyncio.wait([adding])
                if after > 1:
                    break
            if after <= 1:
                await d.add(Slow("a", 0.0))
            assert sorted(one.name for one in d.stats().devices) == ["a", "b"]
            assert await d.infer(1) == 1

    virtual(run())


# ---- what objects say


class Telling(SimulatedDriver):
    details: dict[str, str | float]


async def test_statistics_go_into_json_and_objects_tell_of_themselves():
    driver = Telling("a", 0.0)
    driver.details = {"rate": float("nan"), "unit": "x", "most": float("inf")}
    d = Dispatcher([driver])
    assert repr(d) == "<Dispatcher not open: a>"
    await d.open()
    stream = d.stream(range(3))
    assert repr(stream) == "<Stream 1, in order: not begun, 0 tasks accepted>"
    facts = json.loads(json.dumps(dataclasses.asdict(d.stats()), allow_nan=False))
    assert facts["devices"][0]["next_attempt"] is None
    assert facts["devices"][0]["details"] == {"rate": None, "unit": "x", "most": None}
    assert repr(d) == "<Dispatcher open: a ready>"
    await d.close()
    assert repr(d).startswith("<Dispatcher closed")
