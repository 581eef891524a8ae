"""A stream stops as soon as nobody wants it, leaves nothing running, and the dispatcher goes on."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import anyio
import inside
import pytest
from fakes import Noting, Unusual

from asyncinfer import Dispatcher
from asyncinfer.errors import ClosedError, InputError, TaskError
from asyncinfer.testing import SimulatedDriver


class Source:
    """An endless source that knows how far it was read and whether it was closed."""

    def __init__(self):
        self.read = 0
        self.closed = False

    def sync(self):
        try:
            while True:
                self.read += 1
                yield self.read - 1
        finally:
            self.closed = True

    async def asynchronous(self):
        try:
            while True:
                self.read += 1
                yield self.read - 1
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)  # closing may take a while
            self.closed = True

    async def hanging(self):
        try:
            yield 0
            await asyncio.sleep(1e5)
        finally:
            self.closed = True


# ---- every way to stop a stream: each takes a stream and returns when it is stopped


async def by_break(make):
    async for y in make():
        if y == 5:
            break


async def by_exception(make):
    try:
        async for y in make():
            if y == 5:
                raise KeyError(y)
    except KeyError:
        return


async def by_aclose(make):
    stream = make()
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def by_leaving_a_with_block(make):
    async def consume():
        async with make() as stream:
            async for y in stream:
                raise KeyError(y)

    with pytest.raises(KeyError):
        await consume()


async def by_cancelling_the_consumer(make):
    async def consume():
        async for _ in make():
            pass

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(0.35)
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()


async def by_timeout(make):
    async def consume():
        async with asyncio.timeout(0.35), make() as stream:
            async for _ in stream:
                pass

    with pytest.raises(TimeoutError):
        await consume()


async def by_an_anyio_scope(make):
    with anyio.move_on_after(0.35) as scope:
        async for _ in make():
            pass
    assert scope.cancelled_caught


async def by_a_sibling_in_a_task_group(make):
    async def consume():
        async for _ in make():
            pass

    async def fail():
        await asyncio.sleep(0.35)
        raise KeyError

    async def both():
        async with asyncio.TaskGroup() as group:
            group.create_task(consume())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup):
        await both()


async def by_dropping_it(make):
    stream = make()
    await anext(stream)
    del stream


WAYS = [
    by_break,
    by_exception,
    by_aclose,
    by_leaving_a_with_block,
    by_cancelling_the_consumer,
    by_timeout,
    by_an_anyio_scope,
    by_a_sibling_in_a_task_group,
    by_dropping_it,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["sync", "asynchronous", "hanging"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_stopped_stream_leaves_nothing(virtual, way, kind, ordered):
    if kind == "hanging" and way in (by_break, by_exception):
        pytest.skip("needs more than one result")

    async def run():
        drivers = [Noting("a", 0.1), Noting("b", 0.13, concurrency=2), Noting("c", 0.9)]
        async with Dispatcher(drivers, policy="greedy", window=30, queue_size=7) as d:
            source = Source()
            await way(lambda: d.stream(getattr(source, kind)(), ordered=ordered))
            gc.collect()
            for _ in range(5):
                await asyncio.sleep(0)
            assert source.closed
            assert source.read <= d.stats().finished + 30 + 7
            assert [driver.running for driver in drivers] == [0, 0, 0]
            assert sum(len(driver.cancelled) for driver in drivers) >= (kind != "hanging")
            stats = d.stats()
            assert stats.queue_depth == stats.waiting == stats.running == stats.reorder_buffer == 0
            assert [y async for y in d.stream([1, 2])] == [1, 2]
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() == begun

    virtual(run())


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_cancelling_the_consumer_at_any_step_loses_nothing_of_others(virtual, steps):
    async def run():
        async with Dispatcher([Noting("a", 0.0), Noting("b", 0.0)], window=4, queue_size=2) as d:
            kept = d.stream(range(200))

            async def consume():
                async with d.stream(range(1000)) as stream:
                    async for _ in stream:
                        await asyncio.sleep(0)

            consumer = asyncio.create_task(consume())
            got = []
            for _ in range(steps):
                await asyncio.sleep(0)
                got.append(await anext(kept))
            consumer.cancel()
            got += [y async for y in kept]
            await asyncio.wait([consumer])
            assert got == list(range(200))
            assert await d.infer("x") == "x"

    virtual(run())


def test_waiting_for_a_result_may_be_given_up_and_taken_up_again(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.1)]) as d:
            stream, got, waits = d.stream(range(20)), [], 0
            while len(got) < 20:
                try:
                    async with asyncio.timeout(0.013):
                        got.append(await anext(stream))
                except TimeoutError:
                    waits += 1
            return got, waits

    got, waits = virtual(run())
    assert got == list(range(20))
    assert waits > 100


def test_a_stream_left_at_its_last_result_is_forgotten(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.01)]) as d:
            for _ in range(20):
                stream = d.stream(range(3))
                assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
                await asyncio.sleep(0.001)
            del stream
            await asyncio.sleep(0)
            return inside.lanes(d)

    assert len(virtual(run())) == 1


def test_nothing_is_read_before_it_is_asked_for_nor_ahead_of_the_room(virtual):
    async def run():
        source = Source()
        drivers = [SimulatedDriver("a", 0.1, max_batch=2)]
        async with Dispatcher(drivers, window=5, queue_size=3) as d:
            stream = d.stream(source.sync())
            await asyncio.sleep(10)
            assert source.read == 0
            for number in range(40):
                assert await anext(stream) == number
                assert source.read <= number + 1 + 5 + 3
                await asyncio.sleep(1)
            await stream.aclose()

    virtual(run())


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("error", [LookupError("gone"), Unusual()])
def test_the_error_of_a_source_comes_after_its_results(virtual, is_async, error):
    def source():
        yield from range(10)
        raise error

    async def async_source():
        for x in source():
            yield x

    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.1)]) as d:
            stream = d.stream(async_source() if is_async else source())
            assert [await anext(stream) for _ in range(10)] == list(range(10))
            with pytest.raises(type(error)) as caught:
                await anext(stream)
            assert caught.value is error
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    virtual(run())


def test_a_failed_task_raises_in_its_place_and_the_stream_goes_on(virtual):
    async def run():
        driver = SimulatedDriver("a", 0.1, fail=lambda x: InputError("odd") if x % 2 else None)
        async with Dispatcher([driver]) as d:
            stream, got = d.stream(range(6)), []
            for _ in range(6):
                try:
                    got.append(await anext(stream))
                except TaskError as error:
                    got.append(f"error {error.index}")
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            returned = [y async for y in d.stream(range(6), return_exceptions=True)]
            results = [r async for r in d.results(range(6))]
            return got, returned, results

    got, returned, results = virtual(run())
    assert got == [0, "error 1", 2, "error 3", 4, "error 5"]
    assert [y if isinstance(y, int) else f"error {y.index}" for y in returned] == got
    assert [r.index for r in results] == list(range(6))
    assert results[2].unwrap() == 2
    with pytest.raises(TaskError, match="task 3 failed after 1 attempt: on 'a': odd"):
        results[3].unwrap()


def test_one_stream_has_one_reader(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.1)]) as d:
            stream = d.stream(range(3))
            first = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already being read"):
                await anext(stream)
            assert await first == 0
            assert [y async for y in stream] == [1, 2]

    virtual(run())


def test_closing_wakes_the_reader_in_another_task(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 1e4)]) as d:
            stream = d.stream(range(3))

            async def read():
                return [y async for y in stream]

            reader = asyncio.create_task(read())
            await asyncio.sleep(1)
            await stream.aclose()
            with pytest.raises(ClosedError, match="closed by another task"):
                await reader

    virtual(run())


async def test_many_streams_and_calls_at_once():
    """On the real loops: everyone gets what is theirs, in order."""
    drivers = [SimulatedDriver(f"d{i}", 0.0, max_batch=i + 1) for i in range(3)]
    async with Dispatcher(drivers, window=16, queue_size=8) as d:

        async def consume(name, ordered):
            inputs = [(name, i) for i in range(300)]
            got = [y async for y in d.stream(inputs, ordered=ordered)]
            assert got == inputs if ordered else Counter(got) == Counter(inputs)

        async def call(number):
            assert await d.infer(number) == number

        async with asyncio.TaskGroup() as group:
            for name in range(6):
                group.create_task(consume(name, name % 2 == 0))
            for number in range(200):
                group.create_task(call(number))
    assert d.stats().finished == 6 * 300 + 200


@pytest.mark.parametrize("way", [by_break, by_exception, by_aclose, by_leaving_a_with_block])
async def test_stopping_on_real_loops(way):
    drivers = [Noting("a", 0.0), Noting("b", 0.001)]
    async with Dispatcher(drivers, window=20, queue_size=5) as d:
        for kind in ("sync", "asynchronous"):
            source = Source()
            await way(lambda: d.stream(getattr(source, kind)()))  # noqa: B023  called at once
            gc.collect()
            for _ in range(20):
                await asyncio.sleep(0)
            assert source.closed
            assert [driver.running for driver in drivers] == [0, 0]
            assert await d.infer(1) == 1
