"""Drivers that never return and ignore their cancellation: nothing else waits for them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import Unknown, Wedged, deaf, now

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import ClosedError, DeviceTimeout
from asyncinfer.testing import SimulatedDriver


class Blocked(SimulatedDriver):
    """Each call blocks a thread of its own until ``release``, and cannot be cancelled."""

    def __init__(self, name, **options):
        super().__init__(name, 0.0, **options)
        self.threads = ThreadPoolExecutor(thread_name_prefix="blocked")
        self.gate = threading.Event()

    async def infer(self, batch):
        await deaf(asyncio.wrap_future(self.threads.submit(self.gate.wait)))
        return ["late"] * len(batch)

    async def release(self):
        self.gate.set()
        await asyncio.to_thread(self.threads.shutdown)
        await asyncio.sleep(0.01)


# ---- calls


async def test_a_thread_blocked_for_ever_delays_nobody_and_is_named_at_the_end(caplog):
    events = []
    blocked, good = Blocked("blocked"), SimulatedDriver("good", 0.0)
    limits = Timeouts(run=0.05, close=0.2)
    try:
        async with Dispatcher([blocked, good], timeout=limits, on_event=events.append) as d:
            assert [y async for y in d.stream(range(200))] == list(range(200))
            await d.close()
            assert not blocked.gate.is_set(), "it has not waited for the thread"
            (device, _) = d.stats().devices
            assert device.state == "removed"
            assert device.wedged >= 1
    finally:
        await blocked.release()
    wedged = [event for event in events if event.kind == "device.wedged"]
    assert {event.device for event in wedged} == {"blocked"}
    assert "left behind" in wedged[-1].reason
    assert "device 'blocked' is wedged" in caplog.text
    assert d.stats().devices[0].wedged == 0, "released, it has ended"


def test_late_answers_of_an_earlier_opening_change_nothing(virtual):
    async def run():
        a = Wedged("a", "infer", service_time=0.5)
        b = SimulatedDriver("b", 0.2)
        async with Dispatcher([a, b], timeout=Timeouts(run=2.0, close=1.0)) as d:
            asyncio.get_running_loop().call_later(1.0, a.where.clear)
            got = [r async for r in d.results(range(40))]
            await asyncio.sleep(5)
            before = d.stats().devices[0]
            assert (before.state, before.wedged, before.generation) == ("ready", 1, 2)
            await a.release()
            after = d.stats().devices[0]
            assert after.wedged == 0
            same = ("tasks", "batches", "errors", "latency", "service_time", "failures", "state")
            assert all(getattr(before, name) == getattr(after, name) for name in same)
            assert sorted(r.value for r in got) == list(range(40)), "none is 'late'"
            assert [y async for y in d.stream(range(10))] == list(range(10))

    virtual(run())


def test_it_is_opened_again_beside_one_wedged_call_and_not_beside_two(virtual):
    async def run():
        a = Wedged("a", "infer")
        async with Dispatcher(
            [a, SimulatedDriver("b", 0.1)],
            policy="greedy",
            retries=100,
            timeout=Timeouts(run=0.5, close=1.0),
        ) as d:
            for _ in range(30):
                assert [y async for y in d.stream(range(20))] == list(range(20))
            device = d.stats().devices[0]
            assert (a.opens, device.state, device.wedged) == (2, "backing_off", 2)
            assert device.next_attempt is None
            assert device.reason == "waiting for one of 2 calls left behind to end"
            await a.release()
            await asyncio.sleep(1)
            device = d.stats().devices[0]
            assert (a.opens, device.state, device.wedged) == (3, "suspect", 0)
            assert [y async for y in d.stream(range(20))] == list(range(20))
            assert d.stats().devices[0].state == "ready"

    virtual(run())


def test_a_call_nobody_waits_for_any_more_does_not_end_the_device(virtual):
    """It is cancelled without a fault, and the device is busy until it has ended."""

    async def run():
        a = Wedged("a", "infer")
        async with Dispatcher([a]) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(1)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.sleep(10)
            assert d.stats().devices[0].state == "suspect"
            await a.release()
            assert await d.infer(2) == 2
            assert d.stats().devices[0].state == "ready"
            assert a.opens == 1

    virtual(run())


# ---- removing and closing


@pytest.mark.parametrize("drain", [True, False])
def test_removing_a_wedged_device_ends_in_time_and_its_task_moves(virtual, caplog, drain):
    async def run():
        a = Wedged("a", "infer")
        async with Dispatcher([a], timeout=Timeouts(close=2.0)) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(0.5)
            await d.add(SimulatedDriver("b", 0.1))
            begun = now()
            await d.remove("a", drain=drain)
            assert now() - begun == pytest.approx(2.0 + 0.4 * drain), "0.9 s is 8 of its calls"
            assert await call == 1
            assert [device.name for device in d.stats().devices] == ["b"]
        assert not a.free.is_set()
        await a.release()

    virtual(run())
    assert "device 'a' is wedged: 1 call left behind" in caplog.text
    assert ("device 'a' does not finish: its tasks go elsewhere" in caplog.text) is drain


def test_draining_a_device_of_unknown_speed_ends_with_the_drain_timeout(virtual):
    class UnknownWedged(Unknown, Wedged):
        pass

    async def run():
        a = UnknownWedged("a", "infer")
        async with Dispatcher([a], timeout=Timeouts(close=2.0, drain=7.0)) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(0.5)
            await d.add(SimulatedDriver("b", 0.1))
            begun = now()
            await d.remove("a")
            assert now() - begun == 9.0
            assert await call == 1
        await a.release()

    virtual(run())


@pytest.mark.parametrize("where", [("infer",), ("close",), ("infer", "close"), ("open",)])
def test_closing_takes_no_longer_than_its_timeout_whatever_is_wedged(virtual, where, caplog):
    async def run():
        events = []
        drivers = [Wedged("a", *where), Wedged("b", *where), SimulatedDriver("good", 0.1)]
        limits = Timeouts(open=1.0, close=3.0)
        async with Dispatcher(drivers, timeout=limits, on_event=events.append) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(20)]
            await asyncio.sleep(0.5)
            begun = now()
            await d.close()
            assert now() - begun == pytest.approx(3.0)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} <= {int, ClosedError}
            left = {device.name: device.wedged for device in d.stats().devices}
            assert left["good"] == 0
            assert left["a"] == left["b"] >= 1
        assert {e.device for e in events if e.kind == "device.wedged"} == {"a", "b"}
        for driver in drivers[:2]:
            await driver.release()

    virtual(run())
    assert caplog.text.count("is wedged") == 2, "each is named once"


# ---- opening


def test_an_opening_that_is_wedged_ends_with_the_open_timeout(virtual):
    async def run():
        a = Wedged("a", "open")
        limits = Timeouts(open=2.0, close=1.0)
        drivers = [a, SimulatedDriver("b", 0.1)]
        async with Dispatcher(drivers, timeout=limits, wait_for="all") as d:
            assert now() == 2.0
            assert [y async for y in d.stream(range(30))] == list(range(30))
            await asyncio.sleep(30)
            assert a.opens == 2, "one more beside the first, and no third"
            assert d.stats().devices[0].wedged == 2
            await a.release()
            await asyncio.sleep(5)
            assert d.stats().devices[0].state == "ready"
        with pytest.raises(DeviceTimeout, match=r"device 'c': did not open within 2\.0 s"):
            await Dispatcher([c := Wedged("c", "open")], timeout=limits).__aenter__()
        await c.release()

    virtual(run())


def test_adding_a_device_whose_opening_is_wedged(virtual):
    async def run():
        a = Wedged("a", "open")
        async with Dispatcher([SimulatedDriver("b", 0.1)], timeout=Timeouts(open=2, close=1)) as d:
            adding = asyncio.create_task(d.add(a))
            assert [y async for y in d.stream(range(30))] == list(range(30))
            with pytest.raises(DeviceTimeout):
                await adding
            assert now() == pytest.approx(3.0)
            assert [device.name for device in d.stats().devices] == ["b"]
        await a.release()

    virtual(run())


class Late(Wedged):
    """Its opening takes until ``free`` is set, whoever cancels it, and succeeds."""

    def __init__(self, name, **options):
        super().__init__(name, "open", **options)
        self.closed_at = []

    async def close(self):
        self.closed_at.append(now())
        await asyncio.sleep(0.25)
        await super().close()


def test_what_opens_after_the_dispatcher_was_closed_is_closed(virtual):
    async def run():
        late = Late("late")
        limits = Timeouts(open=2.0, close=1.0)
        async with Dispatcher([late, SimulatedDriver("b", 0.1)], timeout=limits) as d:
            assert await d.infer(1) == 1
        assert now() < 4.0
        await asyncio.sleep(10)
        assert not late.is_open
        late.free.set()
        await asyncio.sleep(1)
        assert not late.is_open
        assert late.closed_at[-1] > 10.0
        assert d.stats().devices[0].wedged == 0

    virtual(run())


def test_what_opens_while_held_off_is_closed_before_it_is_opened_again(virtual):
    async def run():
        late = Late("late")
        limits = Timeouts(open=2.0, close=1.0)
        drivers = [late, SimulatedDriver("b", 0.1)]
        async with Dispatcher(drivers, timeout=limits, wait_for="all") as d:
            await asyncio.sleep(1.001)  # it was 1 s in closing
            assert d.stats().devices[0].state == "backing_off"
            again = d.stats().devices[0].next_attempt
            await asyncio.sleep(again - now() - 0.01)
            late.free.set()
            await asyncio.sleep(0.005)
            assert late.is_open
            assert late.opens == 1
            await asyncio.sleep(0.1)
            assert (d.stats().devices[0].state, late.opens) == ("opening", 1), "after closing"
            await asyncio.sleep(0.5)
            assert (d.stats().devices[0].state, late.opens) == ("ready", 2)
            assert late.is_open
        assert not late.is_open

    virtual(run())


def test_what_opens_late_is_left_to_a_later_opening_that_is_in_use(virtual):
    class Twice(Late):
        async def open(self):
            if self.opens:
                self.opened_at.append(now())
                self.is_open = True
            else:
                await super().open()

    async def run():
        late = Twice("late")
        limits = Timeouts(open=2.0, close=1.0)
        drivers = [late, SimulatedDriver("b", 0.1)]
        async with Dispatcher(drivers, timeout=limits, wait_for="all") as d:
            await asyncio.sleep(2.0)
            assert d.stats().devices[0].state == "ready"
            closed = len(late.closed_at)
            late.free.set()
            await asyncio.sleep(1)
            assert len(late.closed_at) == closed
            assert [y async for y in d.stream(range(10))] == list(range(10))
            assert d.stats().devices[0].state == "ready"

    virtual(run())
