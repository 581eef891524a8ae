"""Adding and removing devices while streams run, and devices that resist being closed."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest
from fakes import Deaf, Doored

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import ClosedError, ConfigError, DeviceError, DeviceLost


def lost(name):
    return DeviceLost(name, "not there")


# ---- adding and removing


def test_a_device_added_takes_part_and_one_removed_finishes(virtual):
    async def run():
        a, b, c = Doored("a"), Doored("b", 0.5), Doored("c")
        async with Dispatcher([a], window=100) as d:
            results, got = d.results(range(200)), []
            async for result in results:
                got.append(result)
                if len(got) == 20:
                    await d.add(b)
                    await d.add(c)
                if len(got) == 100:
                    await d.remove("b")
                    assert not b.is_open
                    await d.remove("a", drain=False)
                    assert not a.is_open
            assert [r.index for r in got] == list(range(200))
            assert all(r.error is None for r in got)
            assert {r.device for r in got[:20]} == {"a"}
            assert {r.device for r in got[20:100]} == {"a", "b", "c"}
            assert {r.device for r in got[130:]} == {"c"}
            assert [device.name for device in d.stats().devices] == ["c"]
            await d.add(b)
            assert b.is_open
        assert [b.is_open, c.is_open] == [False, False]

    virtual(run())


def test_removing_waits_for_a_running_call_or_not(virtual):
    async def run(drain):
        async with Dispatcher([Doored("a", 5.0), Doored("b", 7.0)]) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(2)]
            await asyncio.sleep(1)
            await d.remove("a", drain=drain)
            removed = asyncio.get_running_loop().time()
            assert await asyncio.gather(*calls) == [0, 1]
            return removed, asyncio.get_running_loop().time()

    assert virtual(run(True)) == (5.0, 7.0)
    assert virtual(run(False)) == (1.0, 14.0)


def test_removing_a_device_twice_at_once(virtual):
    async def run():
        a = Doored("a", 5.0)
        async with Dispatcher([a, Doored("b", 5.0)]) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(1)
            await asyncio.gather(d.remove("a"), d.remove("a"))
            assert await call == 1
            assert a.closes == 1
            with pytest.raises(ConfigError, match="no device 'a' to remove: there are b"):
                await d.remove("a")

    virtual(run())


def test_removing_a_device_that_is_lost_ends_its_recovery(virtual):
    async def run():
        a = Doored("a", fail=lambda x: True)
        async with Dispatcher([a, Doored("b")]) as d:
            a.openings = [100]
            assert await d.infer(1) == 1
            await asyncio.sleep(1)
            await d.remove("a")
            assert asyncio.get_running_loop().time() < 2
            await asyncio.sleep(200)
            assert not a.is_open

    virtual(run())


def test_a_device_that_cannot_be_added_leaves_no_trace(virtual):
    async def run():
        async with Dispatcher([Doored("a")]) as d:
            with pytest.raises(ConfigError, match="there is a device 'a' already"):
                await d.add(Doored("a"))
            bad = Doored("b", openings=[lost("b")])
            with pytest.raises(DeviceLost):
                await d.add(bad)
            assert bad.closes == 1
            slow = Doored("b", openings=[100])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await d.add(slow)
            assert slow.closes == 1
            await d.add(Doored("b"))
            assert [device.name for device in d.stats().devices] == ["a", "b"]

    virtual(run())


def test_closing_while_a_device_is_being_added(virtual):
    async def run():
        late = Doored("late", openings=[5])
        async with Dispatcher([Doored("a")]) as d:
            adding = asyncio.create_task(d.add(late))
            await asyncio.sleep(1)
            await d.close()
            with pytest.raises(ClosedError, match="closed while device 'late' was opening"):
                await adding
            assert not late.is_open

    virtual(run())


# ---- closing


class Wedged(Doored):
    """Does not close, whatever is done to it."""

    async def close(self):
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(400)


def test_a_device_that_does_not_close_is_left_behind(virtual, caplog):
    async def run():
        async with Dispatcher([Wedged("a"), Doored("b")], timeout=Timeouts(close=2)) as d:
            await d.infer(1)
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun <= 4

    virtual(run())
    assert "device 'a' did not close within 2 s" in caplog.text


def test_a_call_that_does_not_end_is_left_behind(virtual, caplog):
    async def run():
        async with Dispatcher([Deaf("a", 0.1, seconds=50)], timeout=Timeouts(close=2)) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(1)
            await d.close()
            assert asyncio.get_running_loop().time() == 3
            with pytest.raises(ClosedError):
                await call
        await asyncio.sleep(50)

    virtual(run())
    assert "device 'a' is wedged: 1 call left behind" in caplog.text


def test_a_close_that_raises_is_logged_and_the_others_are_closed(virtual, caplog):
    async def run():
        a, b = Doored("a", closings=DeviceError("a", "stuck lid")), Doored("b")
        async with Dispatcher([a, b]) as d:
            await d.infer(1)
        assert b.closes == 1

    with caplog.at_level(logging.WARNING):
        virtual(run())
    assert "device 'a' did not close cleanly" in caplog.text
    assert "stuck lid" in caplog.text
