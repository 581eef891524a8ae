"""Opening devices, losing them, and opening them again."""

from __future__ import annotations

import asyncio

import pytest
from fakes import Doored

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.dispatch.recheck import Recheck
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout


def lost(name):
    return DeviceLost(name, "not there")


# ---- opening


def test_all_open_at_once_and_close_at_once(virtual):
    async def run():
        drivers = [Doored(name, openings=[3], closings=2) for name in "ab"]
        async with Dispatcher(drivers):
            assert asyncio.get_running_loop().time() == 3
            assert all(driver.is_open for driver in drivers)
        assert asyncio.get_running_loop().time() == 5
        assert [driver.closes for driver in drivers] == [1, 1]

    virtual(run())


def test_one_that_does_not_open_joins_later(virtual):
    async def run():
        late = Doored("late", openings=[lost("late"), OSError("busy"), RuntimeError("odd")])
        async with Dispatcher([late, Doored("there")], policy="static") as d:
            assert d.stats().devices[0].state in ("lost", "backing_off")
            assert await d.infer(1) == 1
            await asyncio.sleep(2)
            assert [device.state for device in d.stats().devices] == ["ready", "ready"]
            got = [r.device async for r in d.results(range(4))]
            assert got == ["late", "there"] * 2
        assert late.closes == 4, "after each failure, and at the end"
        return [b - a for a, b in zip(late.opened_at, late.opened_at[1:], strict=False)]

    pauses = virtual(run())
    for pause, longest in zip(pauses, [0.05, 0.1, 0.2], strict=True):
        assert longest / 2 <= pause <= longest


def test_if_none_opens_the_first_error_names_the_others(virtual):
    async def run():
        drivers = [Doored(n, openings=[lost(n)]) for n in "ab"]
        with pytest.raises(DeviceLost, match="device 'a': not there") as caught:
            await Dispatcher(drivers).__aenter__()
        assert caught.value.__notes__ == ["device 'b': not there"]
        assert [driver.closes for driver in drivers] == [1, 1]

    virtual(run())


@pytest.mark.parametrize("error", [ConfigError("no such port option"), RuntimeError("a bug")])
def test_what_is_no_fault_of_a_device_is_raised_at_once(virtual, error):
    async def run():
        other = Doored("other", openings=[100])
        d = Dispatcher([Doored("a", openings=[error]), other])
        with pytest.raises(type(error)) as caught:
            await d.__aenter__()
        assert caught.value is error
        assert asyncio.get_running_loop().time() == 0
        assert other.closes == 1
        async with d:
            assert await d.infer(1) == 1

    virtual(run())


def test_the_open_timeout(virtual):
    async def run():
        hung, other = Doored("hung", openings=[1e5, 0]), Doored("other")
        limits = Timeouts(open=2.5)
        async with Dispatcher([hung, other], timeout=limits, wait_for="all") as d:
            assert asyncio.get_running_loop().time() == 2.5
            assert await d.infer(1) == 1
            await asyncio.sleep(1)
            assert len(hung.opened_at) == 2
        with pytest.raises(DeviceTimeout, match=r"device 'hung': did not open within 2\.5 s"):
            await Dispatcher(
                [Doored("hung", openings=[1e5])], timeout=Timeouts(open=2.5)
            ).__aenter__()

    virtual(run())


def test_cancelling_the_opening_closes_what_is_open(virtual):
    async def run():
        drivers = [Doored("a"), Doored("b", openings=[100])]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await Dispatcher(drivers, wait_for="all").__aenter__()
        assert [driver.closes for driver in drivers] == [1, 1]
        assert not drivers[0].is_open

    virtual(run())


# ---- losing


def test_pauses_grow_to_a_limit_and_shrink_after_success(virtual):
    async def run():
        a = Doored("a", fail=lambda x: x == "kill")
        async with Dispatcher([a, Doored("b")], retries=0) as d:
            a.openings = [lost("a")] * 14
            with pytest.raises(Exception, match="was lost"):
                await d.infer("kill")
            await asyncio.sleep(500)
            pauses = [y - x for x, y in zip(a.opened_at[1:], a.opened_at[2:], strict=False)]
            assert all(y > x for x, y in zip(pauses[:7:2], pauses[2:9:2], strict=True))
            assert 15 <= max(pauses) <= 30
            assert a.is_open
            assert [y async for y in d.stream(range(20))] == list(range(20))
            before = asyncio.get_running_loop().time()
            with pytest.raises(Exception, match="was lost"):
                await d.infer("kill")
            await asyncio.sleep(1)
            assert a.opened_at[-1] - before < 0.1 + 0.1, "the second loss, and not the 16th failure"

    virtual(run())


async def test_a_look_that_is_due_at_once_can_be_asked_for_again():
    """uvloop hands out plain handles for what is due within its millisecond."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    recheck = Recheck(Roster(Recorder(loop.time, None)), loop, loop.time, asked.set)
    recheck.within(0.0)
    recheck.within(10.0)
    await asyncio.wait_for(asked.wait(), 5.0)
    recheck.cancel()
