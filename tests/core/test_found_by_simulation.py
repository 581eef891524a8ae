"""What `make dst` has found, each in its smallest form."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import inside
import pytest
from fakes import Deaf, Picky, deaf

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer.driver import ServiceTime
from asyncinfer.errors import ClosedError, DeviceError, TaskError
from asyncinfer.stats import DeviceState
from asyncinfer.testing import SimulatedDriver


async def deaf_source(inputs, seconds, after=0):
    """It does not hear that it is cancelled while it waits for one of its inputs."""
    for x in range(inputs):
        if x == after:
            await deaf(asyncio.sleep(seconds))
        yield x


def test_draining_when_a_source_was_not_looked_at_yet_ends_its_stream(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 1.0)]) as d:
            stream = d.stream(range(3))
            first = asyncio.create_task(anext(stream))
            draining = asyncio.create_task(d.drain())
            await asyncio.sleep(0)  # the source's reader exists, and is cancelled before it runs
            with pytest.raises(ClosedError):
                await first
            await draining

    virtual(run())


def test_what_opens_late_just_as_it_is_tried_again_is_closed_first(virtual):
    """The next opening has begun, and has not asked the driver yet."""

    class Late(SimulatedDriver):
        opens, free, opened_twice = 0, asyncio.Event(), False

        async def open(self):
            self.opened_twice |= self.is_open
            self.opens += 1
            if self.opens == 2:
                raise DeviceError("late", "not now")
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(100 if self.opens == 1 else 0)
            if self.opens <= 2:
                await self.free.wait()
            self.is_open = True

    async def run():
        late = Late("late", 0.1)
        limits = Timeouts(open=1.0, close=0.5)

        def told(event):
            if event.kind == "device.opening" and late.opens == 2:
                late.free.set()

        drivers = [late, SimulatedDriver("b", 0.1)]
        async with Dispatcher(drivers, timeout=limits, on_event=told) as d:
            await asyncio.sleep(10)
            assert [str(device.state) for device in d.stats().devices] == ["ready", "ready"]
            assert (late.opens, late.opened_twice, late.is_open) == (3, False, True)

    virtual(run())


@pytest.mark.parametrize("stop", ["aclose", "drain", "close"])
def test_a_source_that_does_not_hear_its_cancellation_is_read_no_further(virtual, stop):
    async def run():
        read = []

        async def source():
            async for x in deaf_source(10, 5.0, after=2):
                read.append(x)
                yield x

        timeouts = Timeouts(close=1.0, drain=100.0)
        async with Dispatcher([SimulatedDriver("a", 0.1)], queue_size=1, timeout=timeouts) as d:
            stream = d.stream(source())
            assert await anext(stream) == 0
            assert await anext(stream) == 1
            await asyncio.sleep(1.0)
            stops = {"aclose": stream.aclose, "drain": d.drain, "close": d.close}
            await stops[stop]()
        assert asyncio.get_running_loop().time() < 10.0
        await asyncio.sleep(10.0)
        assert read == [0, 1, 2]
        assert d.stats().submitted == 2

    virtual(run())


@pytest.mark.parametrize("times", [1, 2, 3])
def test_closing_goes_to_its_end_however_often_it_is_cancelled(virtual, times):
    async def run():
        drivers = [SimulatedDriver("a", 0.1), SimulatedDriver("b", 0.1)]

        async def body():
            async with Dispatcher(drivers) as d, d.stream(deaf_source(1, 1.5)) as stream:
                await anext(stream)

        task = asyncio.create_task(body())
        await asyncio.sleep(0.5)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.1)
        assert not task.done()  # still waiting for the source
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(driver.is_open for driver in drivers)
        assert asyncio.get_running_loop().time() == 1.5

    virtual(run())


def test_a_device_that_rested_is_asked_anew_when_a_faster_one_begins_to_leave(virtual):
    async def run():
        fast, slow = SimulatedDriver("fast", 0.1), SimulatedDriver("slow", 0.35)
        async with Dispatcher([fast, slow]) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(2)]
            await asyncio.sleep(0.01)
            assert d.stats().waiting == 1  # the fast one will be quicker with both
            removal = asyncio.create_task(d.remove("fast"))
            await asyncio.sleep(0.001)
            assert d.stats().waiting == 0
            assert await asyncio.gather(*calls) == [0, 1]
            await removal

    virtual(run())


def test_a_device_lost_just_now_may_be_asked_when_it_will_be_free():
    device = Roster(Recorder(lambda: 0.0, None)).new(SimulatedDriver("a", 1.0))
    for state in (DeviceState.OPENING, DeviceState.READY, DeviceState.LOST):
        device.become(state, 0.0)
    assert device.stuck(0.0)


@pytest.mark.parametrize("steps", range(10))
def test_a_device_that_is_added_while_the_dispatcher_closes_leaves_no_timer(virtual, steps):
    async def run():
        d = Dispatcher([SimulatedDriver("a", 1.0)])
        await d.__aenter__()
        adding = asyncio.create_task(d.add(SimulatedDriver("b", 1.0)))
        for _ in range(steps):
            await asyncio.sleep(0)
        await d.close()
        await asyncio.wait([adding])
        if adding.exception():
            assert isinstance(adding.exception(), ClosedError)

    virtual(run())


def test_a_call_that_ignores_its_cancellation_is_the_last_one_of_its_burst(virtual):
    async def run():
        driver = Deaf("a", 0.00001, seconds=2.0, first=3)  # so fast that it reserves tasks
        async with Dispatcher([driver], timeout=Timeouts(close=1.0)) as d:
            async with d.stream(range(100)) as stream:
                await anext(stream)
                begun = len(driver.batches)
            await asyncio.sleep(0.5)
            await d.close()
        await asyncio.sleep(5.0)
        assert len(driver.batches) == begun

    virtual(run())


def test_nobody_suspects_a_device_that_is_being_closed(virtual):
    async def run():
        async with Dispatcher([Deaf("a", 0.00001, seconds=2.0, first=3)]) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(3)]
            await asyncio.sleep(0.0125)
            (device,) = inside.devices(d)
            device.become(DeviceState.DRAINING, asyncio.get_running_loop().time())
            inside.look(d)  # before the roster has taken that in
            assert device.state is DeviceState.DRAINING
            await asyncio.gather(*calls)

    virtual(run())


@pytest.mark.parametrize("how", ["raises", "removed"])
def test_a_result_of_a_copy_is_not_said_to_be_of_the_call_it_was_copied_from(virtual, how):
    """Its neighbour in that call has none yet, and holds it back."""

    async def run():
        slow = Picky("slow", 0.1, lambda batch: 0 in batch, max_batch=2)
        fast = Picky("fast", 0.00002, lambda batch: 0 in batch)
        hedge = Hedge(quantile=0.5, least=0.001, budget=1.0)
        async with Dispatcher([slow, fast], hedge=hedge) as d:
            (of_slow, _) = inside.devices(d)
            of_slow.calibrate(ServiceTime(0.0, 0.00001))  # so it is overdue at once
            reading = asyncio.create_task(_all(d.results(range(3))))
            if how == "removed":
                await asyncio.sleep(0.05)
                await d.remove("slow", drain=False)
            results = await reading
        assert [type(result.error) for result in results] == [TaskError, type(None), type(None)]
        assert [result.device for result in results[1:]] == ["fast", "fast"]
        assert all(result.finished < 0.1 for result in results[1:])

    virtual(run())


async def _all(results):
    return [result async for result in results]
