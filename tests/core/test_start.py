"""Work begins with the first device that is up; the others join, or go wrong, while it runs."""

from __future__ import annotations

import asyncio

import pytest
from fakes import Doored, Faulty, Unusual, Wedged, now

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.devices.start import AT_ONCE
from asyncinfer.errors import ClosedError, ConfigError, DeviceError, DeviceLost, InputError


def lost(name):
    return DeviceLost(name, "not there")


def states(dispatcher):
    return {device.name: str(device.state) for device in dispatcher.stats().devices}


def test_work_begins_with_the_first_device(virtual):
    async def run():
        drivers = [Doored("slow", 0.1, openings=[30]), Doored("first", 0.1, openings=[1])]
        async with Dispatcher(drivers, window=8) as d:
            assert now() == 1
            assert states(d) == {"slow": "opening", "first": "ready"}
            results, ends = d.results(range(1000)), []
            async for result in results:
                assert (result.index, result.error) == (len(ends), None)
                ends.append((result.device, result.started))
            assert len(ends) == 1000
            assert now() == pytest.approx(30 + (1000 - 290) / 20, abs=0.5)
            assert min(start for name, start in ends if name == "slow") == pytest.approx(30)
            assert states(d) == {"slow": "ready", "first": "ready"}

    virtual(run())


def test_what_opens_at_once_is_there_from_the_beginning(virtual):
    async def run():
        drivers = [Doored(str(n), openings=[n * AT_ONCE / 4]) for n in range(4)]
        async with Dispatcher([*drivers, Doored("late", openings=[9])]) as d:
            assert now() == AT_ONCE
            assert list(states(d).values()) == ["ready"] * 4 + ["opening"]

    virtual(run())


def test_all_are_waited_for_on_demand(virtual):
    async def run():
        drivers = [Doored("a"), Doored("b", openings=[3]), Doored("c", openings=[lost("c"), 9])]
        async with Dispatcher(drivers, wait_for="all", policy="static") as d:
            assert now() == 3
            assert states(d) == {"a": "ready", "b": "ready", "c": "lost"}
            assert [r.device async for r in d.results(range(4))] == ["a", "b"] * 2

    virtual(run())


@pytest.mark.parametrize("value", ["any", None, 1, ["first"]])
def test_what_can_be_waited_for(value):
    with pytest.raises(ConfigError, match="wait_for must be 'first' or 'all'"):
        Dispatcher([Doored("a")], wait_for=value)


def test_if_all_fail_in_the_end_the_first_error_is_raised(virtual):
    async def run():
        soon, later = Doored("soon", openings=[lost("soon")]), Doored("later")
        later.opening = lambda: failing_after(2, lost("later"))
        with pytest.raises(DeviceLost, match="device 'soon': not there") as caught:
            await Dispatcher([soon, later]).__aenter__()
        assert now() == 2
        assert caught.value.__notes__ == ["device 'later': not there"]
        assert [(driver.opens, driver.closes) for driver in (soon, later)] == [(1, 1)] * 2

    virtual(run())


async def failing_after(seconds, error):
    await asyncio.sleep(seconds)
    raise error


@pytest.mark.parametrize("error", [ConfigError("no such model"), KeyError("a bug"), Unusual("odd")])
@pytest.mark.parametrize("seconds", [0, AT_ONCE / 2, 2])
def test_what_is_no_fault_of_a_device_ends_the_start_while_it_lasts(virtual, error, seconds):
    async def run():
        up = [Doored("good", openings=[0 if seconds < AT_ONCE else 3])]
        bad = Doored("bad")
        bad.opening = lambda: failing_after(seconds, error)
        with pytest.raises(type(error)) as caught:
            await Dispatcher([*up, bad, Doored("slow", openings=[30])]).__aenter__()
        assert caught.value is error
        assert now() == seconds
        assert not any(driver.is_open for driver in up)

    virtual(run())


@pytest.mark.parametrize("error", [ConfigError("no such model"), KeyError("a bug"), Unusual("odd")])
def test_the_same_once_work_has_begun_is_told_and_the_others_go_on(virtual, caplog, error):
    async def run():
        events, bad = [], Doored("bad")
        bad.opening = lambda: failing_after(2, error)
        async with Dispatcher([Doored("good"), bad], on_event=events.append) as d:
            assert now() == AT_ONCE
            assert [y async for y in d.stream(range(50))] == list(range(50))
            lost, held_off = [e for e in events if e.device == "bad"][1:3]
            assert (lost.kind, lost.error, lost.time) == ("device.lost", error, 2)
            assert (held_off.kind, held_off.reason) == ("device.backing_off", str(error))
            assert d.stats().devices[1].failures > 0
            bad.opening = lambda: asyncio.sleep(0)
            await asyncio.sleep(10)
            assert states(d) == {"good": "ready", "bad": "ready"}
        assert not bad.is_open

    virtual(run())
    assert f"device.lost bad: {error}" in caplog.text


@pytest.mark.parametrize("drain", [True, False])
def test_a_device_can_be_removed_while_it_opens(virtual, drain):
    async def run():
        late = Doored("late", openings=[30])
        async with Dispatcher([Doored("a"), late]) as d:
            with pytest.raises(ConfigError, match="there is a device 'late' already"):
                await d.add(Doored("late"))
            await d.remove("late", drain=drain)
            assert now() == AT_ONCE
            assert list(states(d)) == ["a"]
            await d.add(Doored("late"))
            assert await d.infer(1) == 1
        assert (late.closes, late.is_open) == (1, False)

    virtual(run())


@pytest.mark.parametrize("how", ["close", "drain", "leave", "raise", "cancel"])
def test_ending_while_a_device_opens(virtual, how):
    async def run():
        late = Doored("late", openings=[30])

        async def body():
            async with Dispatcher([Doored("a", 1.0), late]) as d:
                call = asyncio.create_task(d.infer(1))
                call.add_done_callback(asyncio.Task.exception)
                await asyncio.sleep(0.1)
                if how == "raise":
                    raise KeyError
                if how in ("close", "drain"):
                    await getattr(d, how)()
                if how == "cancel":
                    await asyncio.sleep(100)
            return await call

        task = asyncio.create_task(body())
        await asyncio.sleep(0.2)
        if how == "cancel":
            task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        kinds = {"close": ClosedError, "raise": KeyError, "cancel": asyncio.CancelledError}
        assert isinstance(end, kinds.get(how, int))
        assert now() < 2
        assert (late.closes, late.is_open) == (1, False)

    virtual(run())


def test_closing_while_an_opening_is_wedged_ends_in_time(virtual):
    async def run():
        late = Wedged("late", "open")
        async with Dispatcher([Doored("a"), late], timeout=Timeouts(close=2.0)) as d:
            assert await d.infer(1) == 1
        assert now() <= 2.5
        assert d.stats().devices[1].wedged == 1
        await late.release()

    virtual(run())


def test_tasks_of_a_lost_device_wait_for_one_that_still_opens(virtual):
    async def run():
        first = Faulty("first", 0.1, faults=[DeviceError("first", "burnt")])
        first.opening = lambda: asyncio.sleep(0) if first.opens == 1 else asyncio.sleep(500)
        async with Dispatcher([first, Doored("late", openings=[5])]) as d:
            assert [r.device async for r in d.results(range(3))] == ["late"] * 3
            assert now() == pytest.approx(5.3)

    virtual(run())


@pytest.mark.parametrize("policy", ["eft", "greedy", "static", "sync", "serial"])
def test_order_holds_under_every_policy_as_devices_join(virtual, policy):
    async def run():
        drivers = [Doored(f"d{n}", 0.02 * (n + 1), openings=[(5 - n) / 2]) for n in range(5)]
        async with Dispatcher(drivers, policy=policy, window=16, queue_size=4) as d:
            got = [y async for y in d.stream(range(300))]
            assert got == list(range(300))
            assert d.stats().finished == d.stats().submitted == 300

    virtual(run())


def test_a_stream_that_needs_a_device_to_itself_gets_the_late_one(virtual):
    class Remembering(Doored):
        stateful = True

        async def reset(self):
            pass

    async def run():
        drivers = [Remembering("a", 0.1), Remembering("late", 0.1, openings=[5])]
        async with Dispatcher(drivers) as d:

            async def devices(count):
                return [r.device async for r in d.results(range(count))]

            long, short = await asyncio.gather(devices(100), devices(10))
            assert (set(long), set(short)) == ({"a"}, {"late"})
            assert now() == pytest.approx(10, abs=0.1)

    virtual(run())


def test_opening_without_a_block(virtual):
    async def run():
        a = Doored("a", openings=[1])
        d = Dispatcher([a])
        assert await d.open() is None
        with pytest.raises(ClosedError, match="open already"):
            await d.open()
        call = asyncio.create_task(d.infer(1))
        await asyncio.sleep(0)
        await d.drain()
        await d.close()
        assert (await call, a.is_open) == (1, False)
        async with d:
            assert await d.infer(2) == 2

    virtual(run())


async def test_on_real_loops_the_first_answer_does_not_wait():
    drivers = [Doored("slow", openings=[30.0]), Doored("first", 0.0)]
    async with asyncio.timeout(20), Dispatcher(drivers) as d:
        assert [y async for y in d.stream(range(100))] == list(range(100))


class Cold(Doored):
    """Fails at its warm-up, the first few times."""

    def __init__(self, name, *errors):
        super().__init__(name, 0.1)
        self.errors = list(errors)

    async def calibrate(self):
        if self.errors:
            raise self.errors.pop(0)
        return


@pytest.mark.parametrize(
    "error",
    [InputError("no zeros"), ConfigError("set up wrongly"), ValueError("odd"), lost("cold")],
)
def test_what_a_warm_up_meets_ends_no_dispatcher_beside_a_healthy_device(virtual, error):
    async def run():
        events = []
        drivers = [Doored("good", 0.1), Cold("cold", error)]
        async with Dispatcher(drivers, on_event=events.append) as d:
            assert [output async for output in d.stream(range(200))] == list(range(200))
            assert states(d) == {"good": "ready", "cold": "ready"}
        (told,) = [str(event.error) for event in events if event.kind == "device.lost"]
        assert told.startswith("device 'cold': its warm-up failed: ")
        assert told.endswith(str(error).partition(": ")[2] or str(error))

    virtual(run())


def test_a_warm_up_that_fails_on_the_only_device_is_told(virtual):
    async def run():
        with pytest.raises(DeviceError, match="its warm-up failed: InputError: no zeros"):
            async with Dispatcher([Cold("cold", InputError("no zeros"))]):
                pass

    virtual(run())
