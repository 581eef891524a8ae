"""Context variables: a driver sees those of who submitted the task, and never a neighbour's."""

from __future__ import annotations

import asyncio
from contextvars import Context, ContextVar

import pytest

from asyncinfer import Dispatcher
from asyncinfer._core.dispatch.incontext import InContext
from asyncinfer.testing import SimulatedDriver

who: ContextVar[str] = ContextVar("who", default="nobody")


class Asking(SimulatedDriver):
    """Answers with the caller's name; then leaves a mark that no later call may see.

    (Batches, and a stream's calls shorter than a millisecond, share a context.)
    """

    async def infer(self, batch):
        await super().infer(batch)
        name = who.get()
        if self.service_time > 0:
            who.set("a driver's mark")
        return [(x, name) for x in batch]


def drivers(**options):
    return [Asking("a", 0.1, **options), Asking("b", 0.17, **options), Asking("c", 0.0, **options)]


async def consume(d, name, make=range):
    who.set(name)
    return {seen async for _, seen in d.stream(make(40))}


async def named(coro, name):
    who.set(name)
    return await coro


def test_streams_side_by_side(virtual):
    async def run():
        async with Dispatcher(drivers(), window=10, policy="greedy") as d:
            tasks = [asyncio.create_task(consume(d, f"s{i}")) for i in range(4)]
            return await asyncio.gather(*tasks)

    assert virtual(run()) == [{f"s{i}"} for i in range(4)]


def test_streams_with_batches_do_not_mix(virtual):
    async def run():
        async with Dispatcher(drivers(max_batch=7), window=30) as d:
            tasks = [asyncio.create_task(consume(d, f"s{i}")) for i in range(3)]
            return await asyncio.gather(*tasks)

    assert virtual(run()) == [{f"s{i}"} for i in range(3)]


def test_calls(virtual):
    async def run():
        async with Dispatcher(drivers()) as d:
            calls = [asyncio.create_task(named(d.infer(i), f"c{i}")) for i in range(30)]
            return await asyncio.gather(*calls)

    assert virtual(run()) == [(i, f"c{i}") for i in range(30)]


def test_a_call_that_is_tried_again_keeps_its_context(virtual):
    class Failing(Asking):
        async def infer(self, batch):
            who.set("tried once")
            raise ConnectionError

    async def run():
        async with Dispatcher([Failing("a", 0.1), Asking("b", 5.0)]) as d:
            return await asyncio.gather(
                *(asyncio.create_task(named(d.infer(i), f"c{i}")) for i in range(3)),
                asyncio.create_task(consume(d, "s")),
            )

    *calls, stream = virtual(run())
    assert calls[1:] == [(1, "c1"), (2, "c2")]
    assert stream == {"s"}


def test_a_source_runs_in_the_context_of_its_stream(virtual):
    async def run():
        seen = []

        def source(count):
            for i in range(count):
                seen.append(who.get())
                yield i

        async def async_source(count):
            for i in source(count):
                await asyncio.sleep(0.01)
                yield i

        async with Dispatcher(drivers()) as d:
            for make in (source, async_source):
                task = asyncio.create_task(consume(d, make.__name__, make))
                assert await task == {make.__name__}
                assert set(seen) == {make.__name__}
                seen.clear()

    virtual(run())


def test_an_empty_context_is_one_too(virtual):
    """It is falsy, and must not be mistaken for none."""

    async def run():
        async with Dispatcher(drivers()) as d:
            who.set("the opener")
            loop = asyncio.get_running_loop()
            task = loop.create_task(d.infer(1), context=Context())
            return await task

    assert virtual(run()) == (1, "nobody")


async def test_on_real_loops():
    async with Dispatcher([Asking("a", 0.0), Asking("b", 0.0)], window=8) as d:
        streams = [asyncio.create_task(consume(d, f"s{i}")) for i in range(3)]
        calls = [asyncio.create_task(named(d.infer(i), f"c{i}")) for i in range(20)]
        assert await asyncio.gather(*streams) == [{f"s{i}"} for i in range(3)]
        assert await asyncio.gather(*calls) == [(i, f"c{i}") for i in range(20)]
    assert who.get() == "nobody"


class Quick:
    """Calls of microseconds, which are handed out several at once; each leaves a mark."""

    max_batch = concurrency = 1

    def __init__(self, name, steps):
        self.name, self.steps = name, steps

    async def open(self):
        pass

    async def close(self):
        pass

    async def infer(self, batch):
        seen = who.get()
        who.set("a driver's mark")
        for _ in range(self.steps):
            await asyncio.sleep(0)
        assert who.get() == "a driver's mark"
        return [(x, seen) for x in batch]


@pytest.mark.parametrize("steps", [0, 1, 3])
async def test_each_of_many_quick_calls_has_its_callers(steps):
    async with Dispatcher([Quick(f"d{i}", steps) for i in range(2)]) as d:

        async def caller(name):
            who.set(name)
            return [await d.infer(i) for i in range(20)]

        found = await asyncio.gather(*(asyncio.create_task(caller(f"c{k}")) for k in range(50)))
        assert found == [[(i, f"c{k}") for i in range(20)] for k in range(50)]
        batches = sum(device.batches for device in d.stats().devices)
        assert batches == 1000


async def test_a_quick_call_whose_caller_has_an_empty_context():
    who.set("who opened the dispatcher")
    async with Dispatcher([Quick("d0", 1)]) as d:
        calls = [
            asyncio.create_task(d.infer(i), context=Context() if i % 2 else None) for i in range(40)
        ]
        found = [seen for _, seen in await asyncio.gather(*calls)]
        for _ in range(3):  # by now it is known to be quick: several calls are handed out at once
            calls = [asyncio.create_task(d.infer(i), context=Context()) for i in range(40)]
            found += [seen for _, seen in await asyncio.gather(*calls)]
    assert found == ["who opened the dispatcher", "nobody"] * 20 + ["nobody"] * 120


async def test_a_context_of_ones_own_within_a_task():
    name = Context()
    name.run(who.set, "its own")

    async def works(given):
        first = who.get()
        await asyncio.sleep(0)
        who.set("within")
        return given, first, who.get()

    assert await InContext(name, works, 1) == (1, "its own", "within")
    assert who.get() == "nobody"
    assert name[who] == "within"


async def test_a_call_in_a_context_of_its_own_is_cancelled_there():
    name, seen = Context(), []

    async def waits(given):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(who.get())
            raise

    name.run(who.set, "its own")
    task = asyncio.ensure_future(_awaiting(InContext(name, waits, 1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["its own"]


async def test_any_awaitable_will_do_and_errors_pass():
    class Ready:
        def __await__(self):
            return iter(())

    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await InContext(Context(), lambda given: Ready(), 1) is None
    assert await InContext(Context(), lambda given: future, 1) == 7

    async def fails(given):
        raise LookupError(given)

    with pytest.raises(LookupError, match="5"):
        await InContext(Context(), fails, 5)


async def _awaiting(awaitable):
    return await awaitable
