"""The short way of ``infer``: it is used where nothing stands between, and keeps every promise."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
from inside import engine

from asyncinfer import Dispatcher, Driver
from asyncinfer.errors import ClosedError, InputError, TaskError
from asyncinfer.testing import SimulatedDriver

who: ContextVar[str] = ContextVar("who", default="nobody")


class AtOnce(Driver):
    """Answers without waiting for anything, and notes its batches."""

    def __init__(self, name="a", max_batch=1):
        self.name, self.max_batch = name, max_batch
        self.batches = []

    async def infer(self, batch):
        self.batches.append(list(batch))
        who.set("the driver's mark")
        return [self.answer(x) for x in batch]

    def answer(self, x):
        if x == "bad":
            raise InputError("a", "bad")
        return InputError("a", "bad") if x == "returned" else x


async def warmed(d):
    """Until the speed of the first device is known, and the short way open."""
    while not engine(d).short.open:
        await d.infer(0)
        await asyncio.sleep(0)


async def in_short(d):
    """One more call: whether it takes the short way."""
    short = engine(d).short
    future = short.enter(0)
    if future is not None:
        await future
    return future is not None


async def test_what_is_answered_at_once_is_answered_counted_and_in_batches():
    driver = AtOnce(max_batch=8)
    async with Dispatcher([driver]) as d:
        await warmed(d)
        assert await in_short(d)
        driver.batches.clear()
        before = d.stats()
        assert await asyncio.gather(*map(d.infer, range(20))) == list(range(20))
        after = d.stats()
        assert [len(batch) for batch in driver.batches] == [8, 8, 4]
        assert after.finished - before.finished == after.submitted - before.submitted == 20
        assert after.devices[0].tasks - before.devices[0].tasks == 20
        assert after.devices[0].batches - before.devices[0].batches == 3
        assert after.waiting == after.running == after.queue_depth == 0
        assert after.latency_p99 >= after.latency_p50 > 0


async def test_each_call_made_alone_has_its_callers_context_and_leaves_no_mark():
    class Asking(AtOnce):
        async def infer(self, batch):
            token = who.set(who.get() + "!")
            await asyncio.sleep(0)
            name = who.get()
            who.reset(token)  # raises in another context than before
            return [name for _ in batch]

    async def named(d, name):
        who.set(name)
        return await d.infer(0), who.get()

    async with Dispatcher([Asking("a"), AtOnce("b")][:1]) as d:
        await warmed(d)
        names = [f"c{i}" for i in range(5)]
        got = await asyncio.gather(*(asyncio.create_task(named(d, name)) for name in names))
        assert got == [(f"{name}!", name) for name in names]


@pytest.mark.parametrize("bad", ["bad", "returned"])
async def test_an_error_at_once_is_its_own_callers_alone(bad):
    async with Dispatcher([AtOnce(max_batch=4)]) as d:
        await warmed(d)
        got = await asyncio.gather(*map(d.infer, (1, bad, 3)), return_exceptions=True)
        assert (got[0], got[2]) == (1, 3)
        assert isinstance(got[1], TaskError)
        assert isinstance(got[1].causes[-1], InputError)
        assert engine(d).lanes.unfinished == 0


async def test_a_driver_that_answers_at_once_does_not_keep_the_loop():
    async with Dispatcher([AtOnce()]) as d:
        await warmed(d)
        turns = 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        for x in range(50):
            await d.infer(x)
        beside.cancel()
        assert turns >= 50


async def test_cancelled_callers_leave_nothing():
    async with Dispatcher([AtOnce()]) as d:
        await warmed(d)
        for _ in range(20):
            calls = [asyncio.create_task(d.infer(i)) for i in range(50)]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            got = await asyncio.gather(*calls, return_exceptions=True)
            assert got[1::2] == list(range(1, 50, 2))
        short = engine(d).short
        assert not short.calls
        assert not short._spans
        assert engine(d).lanes.unfinished == 0
    assert d.stats().running == 0


def test_a_cancelled_caller_cancels_its_call(virtual):
    ended = []

    class Noting(SimulatedDriver):
        async def infer(self, batch):
            try:
                return await super().infer(batch)
            except asyncio.CancelledError:
                ended.append(batch)
                raise

    async def run():
        async with Dispatcher([Noting("a", 1.0)]) as d:
            await warmed(d)
            call = asyncio.create_task(d.infer("x"))
            await asyncio.sleep(0.5)
            assert engine(d).short._spans
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await asyncio.sleep(0)
            assert not engine(d).short._spans
            return await d.infer("y")

    assert virtual(run()) == "y"
    assert ended == [["x"]]


def test_a_slow_device_gets_no_call_that_a_fast_one_ends_sooner(virtual):
    async def run():
        fast, slow = SimulatedDriver("fast", 0.1), SimulatedDriver("slow", 5.0)
        async with Dispatcher([slow, fast]) as d:
            await warmed(d)
            begun = asyncio.get_running_loop().time()
            await asyncio.gather(*map(d.infer, range(5)))
            took = asyncio.get_running_loop().time() - begun
            return took, {one.name: one.tasks for one in d.stats().devices}

    took, tasks = virtual(run())
    assert took == pytest.approx(0.5)
    assert tasks["slow"] == 0


def test_a_lost_device_a_drain_and_a_close_are_as_for_any_call(virtual):
    class Dying(SimulatedDriver):
        dies = False

        async def infer(self, batch):
            outputs = await super().infer(batch)
            if self.dies:
                raise ConnectionError
            return outputs

    async def run():
        a = Dying("a", 0.1)
        async with Dispatcher([a, SimulatedDriver("b", 0.2)]) as d:
            await warmed(d)
            a.dies = True
            assert await d.infer(1) == 1  # b has done it
            assert d.stats().retried == 1
            a.dies = False
            await asyncio.sleep(30)
            await warmed(d)
            last = asyncio.create_task(d.infer(2))
            await asyncio.sleep(0)
            await d.drain()
            assert last.done() or await last == 2
            with pytest.raises(ClosedError):
                await d.infer(3)
        async with Dispatcher([SimulatedDriver("a", 1.0)]) as d:
            await warmed(d)
            calls = [asyncio.create_task(d.infer(i)) for i in range(3)]
            await asyncio.sleep(0)
            await d.close()
            got = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, ClosedError) for one in got)

    virtual(run())


def test_streams_limits_and_policies_of_ones_own_take_the_common_way(virtual):
    async def opens(stream=False, **options):
        async with Dispatcher([SimulatedDriver("a", 0.1)], **options) as d:
            source = d.stream(range(100)) if stream else None
            if source is not None:
                await anext(source)
            for _ in range(3):
                await d.infer(0)
            was = engine(d).short.open
            if source is not None:
                await source.aclose()
            return was

    assert virtual(opens())
    assert not virtual(opens(timeout=5))
    assert not virtual(opens(hedge=True))
    assert not virtual(opens(policy="serial"))
    assert not virtual(opens(stream=True))


def test_more_callers_than_may_queue_all_have_their_answers(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.01)], window=3, queue_size=3) as d:
            await warmed(d)
            for _ in range(3):
                assert await asyncio.gather(*map(d.infer, range(40))) == list(range(40))

    virtual(run())


async def test_a_driver_that_cancels_its_own_asyncio_task_and_answers_loses_no_call(monkeypatch):
    class Cancelling(AtOnce):
        cancels = False

        async def infer(self, batch):
            if self.cancels:
                asyncio.current_task().cancel()  # as a time limit of its own that comes too late
            return await super().infer(batch)

    driver = Cancelling()
    async with Dispatcher([driver]) as d:
        await warmed(d)
        monkeypatch.setattr("asyncinfer._core.dispatch.short_way.LONGEST_TURN", 1e-9)
        driver.cancels = True
        async with asyncio.timeout(5):
            assert await asyncio.gather(*map(d.infer, range(5))) == list(range(5))
            assert await d.infer("then") == "then"
        assert engine(d).lanes.unfinished == 0
