"""Calls that never end: what waits for them goes elsewhere, and their devices are lost in time."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest
from fakes import Noting, Unknown, now
from inside import devices

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.devices.lateness import MOST_KEPT, Lateness
from asyncinfer._core.devices.run_limit import RunLimit
from asyncinfer.errors import DeviceTimeout, PoisonTask, TaskError
from asyncinfer.testing import SimulatedDriver


class Hangs(Noting):
    """Its calls hang from the n-th of each opening on, or those with one of the inputs ``on``."""

    def __init__(self, name="hung", service_time=0.01, nth=math.inf, *, on=(), **options):
        super().__init__(name, service_time, **options)
        self.nth, self.on, self.first = nth, set(on), 0

    async def opening(self):
        self.first = len(self.batches)

    async def work(self, batch):
        if len(self.batches) - self.first >= self.nth or self.on & set(batch):
            await asyncio.Event().wait()
        return await super().work(batch)


class UnknownHangs(Unknown, Hangs):
    """Cannot say how long a call takes."""


def bound(*seconds):
    """What a hung call may hold up an ordered stream by."""
    return max(0.5, 20 * max(seconds))


async def longest_pause(drivers, tasks, **options):
    """The longest time between two results of an ordered stream."""
    events, moments = [], [0.0]
    async with Dispatcher(drivers, on_event=events.append, **options) as d:
        stream = d.results(range(tasks))
        async for result in stream:
            assert (result.index, result.error) == (len(moments) - 1, None)
            assert result.value == result.index
            moments.append(now())
        stats = d.stats()
    assert len(moments) == tasks + 1
    return max(b - a for a, b in itertools.pairwise(moments)), stats, events


# ---- the stream goes on


@pytest.mark.parametrize("hedge", [None, True])
@pytest.mark.parametrize("nth", [1, 30])
@pytest.mark.parametrize("options", [{}, {"concurrency": 2}, {"max_batch": 16}])
@pytest.mark.parametrize("kind", [Hangs, UnknownHangs])
@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.3])
def test_an_ordered_stream_goes_on_within_twenty_service_times(
    virtual, seconds, kind, options, nth, hedge
):
    size = options.get("max_batch", 1)
    drivers = [kind("hung", seconds, nth, **options), SimulatedDriver("b", seconds, **options)]
    pause, stats, _ = virtual(longest_pause(drivers, 150 * size, hedge=hedge))
    assert pause <= bound(seconds * size)
    assert stats.failed == 0


@pytest.mark.parametrize("nth", [2, 20])
def test_a_single_call_goes_to_a_device_that_has_run_nothing_yet(virtual, nth):
    """One call at a time: the quick device is given them all, and what hangs has no history."""

    async def main():
        drivers = [UnknownHangs("hung", 0.01, nth), Unknown("spare", 0.01)]
        async with Dispatcher(drivers) as d:
            for i in range(40):
                before = now()
                assert await d.infer(i) == i
                assert now() - before <= bound(0.01)
            assert d.stats().hedging.won == 1

    virtual(main())


@pytest.mark.parametrize("policy", ["eft", "greedy"])
def test_so_it_does_when_the_other_device_is_slower(virtual, policy):
    drivers = [Hangs("hung", 0.01, 30), SimulatedDriver("b", 0.04)]
    pause, _, _ = virtual(longest_pause(drivers, 500, policy=policy))
    assert pause <= bound(0.04)


class Warms(UnknownHangs):
    """Its first call takes far longer than all others."""

    async def work(self, batch):
        await asyncio.sleep(30.0 * (len(self.batches) == 1))
        return await super().work(batch)


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}])
@pytest.mark.parametrize("nth", [3, 4, 5, 12])
@pytest.mark.parametrize(("kind", "other"), [(Hangs, SimulatedDriver), (Warms, Unknown)])
def test_and_when_a_call_was_expected_to_take_far_longer_than_others_do(
    virtual, kind, other, nth, options
):
    """By the calibration, or by the first call: the timer that finds what hangs was set by that."""
    options = {"estimate": 30.0, **options}
    drivers = [kind("hung", 0.3, nth, **options), other("b", 0.3, **options)]

    async def main():
        async with Dispatcher(drivers) as d:
            assert [x async for x in d.stream(range(4))] == [*range(4)]
            for i in range(20):
                before = now()
                assert await d.infer(i) == i
                assert now() - before <= bound(0.3)

    virtual(main())


def test_and_when_a_batch_hangs_and_the_other_device_takes_single_tasks(virtual):
    drivers = [Hangs("hung", 0.002, 30, max_batch=32), SimulatedDriver("b", 0.002)]
    pause, _, _ = virtual(longest_pause(drivers, 1500))
    assert pause <= 0.5


def test_and_when_the_device_for_the_copy_hung_for_a_while(virtual):
    """It takes the next copy with the very answer that shows that it does not hang any more."""

    class Naps(Noting):
        async def work(self, batch):
            await asyncio.sleep(len(self.batches) == 4)
            return await super().work(batch)

    async def main():
        slow, naps = UnknownHangs("hung", 0.01, 1, max_batch=4), Naps("b", 0.01)
        async with Dispatcher([slow, naps]) as d:
            moments = [now() async for _ in d.stream(range(5))]
        return moments, naps.called_at

    (*_, before, last), called_at = virtual(main())
    assert before == pytest.approx(called_at[3] + 1.01)
    assert last == pytest.approx(before + 0.01)


@pytest.mark.parametrize("seconds", [0.005, 0.1])
def test_and_when_two_devices_hang_at_once(virtual, seconds):
    """The copy of the first goes to the second one, and hangs there too."""
    names = [Hangs("a", seconds, 40), Hangs("b", seconds * 1.01, 40)]
    drivers = [*names, SimulatedDriver("c", seconds * 3)]
    pause, _, _ = virtual(longest_pause(drivers, 300))
    assert pause <= 2 * bound(seconds)


@pytest.mark.parametrize("what", ["call", "unordered"])
def test_who_waits_for_just_this_gets_it_too(virtual, what):
    async def run():
        hung = Hangs("hung", 0.01, nth=2)
        async with Dispatcher([hung, SimulatedDriver("b", 0.05)]) as d:
            if what == "call":
                assert [await d.infer(x) for x in range(5)] == list(range(5))
            else:
                assert {y async for y in d.stream(range(50), ordered=False)} == set(range(50))
            assert now() < 3.0
            assert d.stats().hedging.won >= 1

    virtual(run())


@pytest.mark.parametrize("acts", ["hung", "b"])
def test_not_where_running_a_task_twice_has_effects(virtual, acts):
    async def run():
        drivers = [Hangs("hung", 0.01, on=[20]), SimulatedDriver("b", 0.02)]
        for driver in drivers:
            driver.side_effects = driver.name == acts
        async with Dispatcher(drivers) as d:
            got = [result async for result in d.results(range(60))]
            assert d.stats().hedging.started == 0
        assert [result.value for result in got] == list(range(60))
        hung = got[20]
        assert (hung.device, hung.attempts) == ("b", 2)
        assert 2.0 < hung.started < 3.0, "after the run limit"

    virtual(run())


def test_a_call_that_answers_after_all_counts_and_the_device_goes_on(virtual):
    class Late(Noting):
        async def work(self, batch):
            if batch == [30]:
                await asyncio.sleep(0.5)
            return await super().work(batch)

    async def run():
        late = Late("late", 0.01)
        async with Dispatcher([late, SimulatedDriver("b", 0.01)]) as d:
            assert [y async for y in d.stream(range(400))] == list(range(400))
            device = d.stats().devices[0]
            assert (device.errors, late.opens, late.cancelled) == (0, 1, [])
            assert max(x for batch in late.batches for x in batch) > 300
            assert d.stats().hedging.won == 1

    virtual(run())


def test_one_lost_request_costs_neither_the_device_nor_its_other_calls(virtual):
    async def run():
        remote = Hangs("remote", 0.01, on=[40], concurrency=4)
        async with Dispatcher([remote, SimulatedDriver("b", 0.01)]) as d:
            assert [y async for y in d.stream(range(2000))] == list(range(2000))
            device = d.stats().devices[0]
            assert (device.errors, remote.opens, remote.cancelled) == (0, 1, [[40]])

    virtual(run())


def test_an_input_that_hangs_every_device_takes_no_more_than_three(virtual):
    async def run():
        drivers = [Hangs(name, 0.01, on=[50]) for name in "abcde"]
        async with Dispatcher(drivers, retries=10) as d:
            got = [result async for result in d.results(range(200))]
            assert [r.index for r in got if r.error] == [50]
            assert isinstance(got[50].error, PoisonTask)
            hung = [driver.name for driver in drivers if [50] in driver.batches]
            assert len(hung) == 3
            assert now() < 5.0

    virtual(run())


def test_of_two_devices_the_last_one_is_not_risked_twice(virtual):
    async def run():
        drivers = [Hangs(name, 0.01, on=[50], max_batch=4) for name in "abc"]
        async with Dispatcher(drivers, retries=1) as d:
            got = [r.index async for r in d.results(range(200)) if r.error]
            assert got == [50], "the others of its batch come through"

    virtual(run())


# ---- the run limit


async def losses(driver, tasks, **options):
    """When the device was lost, and by what, as it does all tasks by itself."""
    events = []
    async with Dispatcher([driver], on_event=events.append, **options) as d:
        async for result in d.results(range(tasks)):
            assert result.value == result.index
    lost = [event for event in events if event.kind == "device.lost"]
    return [(event.time, event.error) for event in lost]


def test_a_device_that_hangs_is_lost_by_its_own_history_and_opened_again(virtual):
    hung = Hangs("hung", 0.01, nth=20)
    ((at, error), *_) = virtual(losses(hung, 30))
    assert at == pytest.approx(0.19 + 2.0, abs=0.11)
    assert isinstance(error, DeviceTimeout)
    assert "no answer for 2" in str(error)
    assert hung.opens == 2


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_silence_of_several_calls_at_once_counts_once(virtual, concurrency):
    """Copies answer for them, and they are given up and followed by others."""

    async def run():
        events = []
        drivers = [Hangs("hung", 0.01, 40, concurrency=concurrency), SimulatedDriver("b", 0.01)]
        async with Dispatcher(drivers, on_event=events.append) as d:
            async for _ in d.results(range(1200)):
                if any(event.kind == "device.lost" for event in events):
                    break
        return next(e.time for e in events if e.kind == "device.suspect"), now()

    suspected, lost = virtual(run())
    assert 1.7 < lost - suspected < 2.5


def test_a_slow_device_is_given_its_own_time(virtual):
    ((at, _), *_) = virtual(losses(Hangs("hung", 1.0, nth=20), 30))
    assert at == pytest.approx(19 + 4 * (0.1 + 8 * 1.0), rel=0.05)


@pytest.mark.parametrize("limit", [None, "auto", 30.0])
def test_without_a_history_or_with_another_limit_it_is_not_lost_so_soon(virtual, limit):
    async def run():
        hung = Hangs("hung", 0.01, nth=8 if limit == "auto" else 20)
        async with Dispatcher([hung], timeout=Timeouts(run=limit)) as d:
            stream = d.stream(range(20))
            await anext(stream)
            await asyncio.sleep(25.0)
            assert (hung.opens, d.stats().devices[0].state) == (1, "suspect")
            await stream.aclose()

    virtual(run())


@pytest.mark.parametrize("seconds", [0.001, 0.05, 1.0])
@pytest.mark.parametrize("factor", [5, 20])
def test_a_device_that_becomes_slower_is_not_lost(virtual, seconds, factor):
    async def run():
        slower = SimulatedDriver("slower", seconds, concurrency=2)
        async with Dispatcher([slower, SimulatedDriver("b", 3 * seconds)]) as d:
            async for result in d.results(range(300)):
                if result.index in (100, 200):
                    slower.service_time = seconds * (factor if result.index == 100 else 1)
            assert [device.errors for device in d.stats().devices] == [0, 0]

    virtual(run())


def test_calls_that_share_a_device_may_take_as_many_times_as_long(virtual):
    """Alone a call takes 0.2 s, and 50 of them at once 10 s; they end all the time."""

    class Serial(SimulatedDriver):
        lock = asyncio.Lock()

        async def infer(self, batch):
            async with self.lock:
                return await super().infer(batch)

    async def run():
        async with Dispatcher([Serial("a", 0.2, concurrency=50)]) as d:
            for x in range(20):
                await d.infer(x)
            await asyncio.gather(*(d.infer(x) for x in range(200)))
            assert d.stats().devices[0].errors == 0

    virtual(run())


def test_a_limit_that_fired_wrongly_is_four_times_as_long_the_next_time(virtual):
    class Compiles(Noting):
        """Now and then an input takes 20 s, and is worth it."""

        async def work(self, batch):
            if batch == [30]:
                await asyncio.sleep(20.0)
            return await super().work(batch)

    driver = Compiles("compiles", 0.01)
    (one, _), (other, _) = virtual(losses(driver, 60))
    assert one == pytest.approx(0.3 + 2.0, abs=0.11)
    assert other - one == pytest.approx(8.0, abs=0.3)
    assert [30] in driver.batches


def test_what_it_has_taken_before_is_not_too_long_and_that_is_forgotten():
    limit = RunLimit()
    assert limit.seconds(0.1, 0.0) == 2.0
    assert limit.seconds(5.0, 0.0) == 20.0
    limit.took(30.0, 100.0)
    assert limit.seconds(0.1, 100.0) == 60.0
    assert limit.seconds(0.1, 160.0) == 30.0
    limit.took(10.0, 160.0)
    assert limit.seconds(0.1, 160.0) == 30.0, "it has taken longer"
    assert limit.seconds(0.1, 1000.0) == 2.0
    limit.cut_off(2.0, 1000.0)
    assert limit.seconds(0.1, 1000.0) == 8.0


# ---- the event loop's own delays


@pytest.mark.parametrize("options", [{}, {"timeout": Timeouts(run=1.0)}])
def test_time_in_which_the_loop_stood_still_is_nobodys_silence(virtual, options):
    async def run():
        loop = asyncio.get_running_loop()

        def stand_still():
            loop._jumping.now += 60.0

        drivers = [SimulatedDriver("a", 0.02), SimulatedDriver("b", 0.02)]
        events = []
        async with Dispatcher(drivers, on_event=events.append, **options) as d:
            loop.call_later(1.005, stand_still)
            loop.call_later(1.205 + 60, stand_still)
            assert [y async for y in d.stream(range(300))] == list(range(300))
        assert not [e for e in events if e.kind in ("device.lost", "device.suspect")]

    virtual(run())


def test_lateness_is_added_up_from_a_moment_on():
    lateness = Lateness()
    assert not lateness.note(1.0, 0.01)
    assert lateness.since(0.0) == 0.0
    assert lateness.note(2.0, 0.5)
    assert lateness.note(4.0, 1.0)
    assert [lateness.since(at) for at in (0.0, 2.0, 3.0, 4.0)] == [1.5, 1.0, 1.0, 0.0]
    for at in range(10, 10 + 2 * MOST_KEPT):
        lateness.note(at, 1.0)
    assert lateness.since(9 + 2 * MOST_KEPT - 3) == 3.0
    assert len(lateness._moments) <= MOST_KEPT


# ---- ready


def test_ready_says_whether_a_device_answers(virtual):
    async def run():
        hung = Hangs("hung", 0.01, nth=20)
        d = Dispatcher([hung])
        assert not d.ready
        async with d:
            assert d.ready, "nothing speaks against it"
            stream = d.stream(range(30))
            for _ in range(19):
                await anext(stream)
            assert d.ready
            await asyncio.sleep(1.0)
            assert (d.stats().devices[0].state, d.ready) == ("suspect", True), "it may be slow"
            await asyncio.sleep(2.0)
            assert (hung.opens, d.ready) == (2, True), "opened again, it has answered"
            hung.nth = 0
            await stream.aclose()
        assert not d.ready

    virtual(run())


@pytest.mark.parametrize(("seconds", "tolerable"), [(0.001, 3.0), (0.1, 3.0), (0.5, 10.0)])
def test_a_device_counts_for_three_seconds_or_twenty_calls_without_an_answer(
    virtual, seconds, tolerable
):
    async def run():
        async with Dispatcher([Hangs("hung", seconds, nth=5)]) as d:
            stream = d.stream(range(9))
            for _ in range(4):
                await anext(stream)
            await asyncio.sleep(tolerable - 0.01)
            assert (str(d.stats().devices[0].state), d.ready) == ("suspect", True)
            await asyncio.sleep(0.02)
            assert not d.ready
            await asyncio.sleep(100)
            assert not d.ready, "it is still asked"
            await stream.aclose()

    virtual(run())


def test_a_device_that_is_slow_for_a_second_now_and_then_stays_ready(virtual):
    class Naps(Noting):
        async def work(self, batch):
            await asyncio.sleep(len(self.batches) % 20 == 0)
            return await super().work(batch)

    async def run():
        async with Dispatcher([Naps("a", 0.001)]) as d:
            asked = asyncio.ensure_future(_all(d.stream(range(200))))
            while not asked.done():
                assert d.ready
                await asyncio.sleep(0.01)

    virtual(run())


async def _all(stream):
    return [x async for x in stream]


def test_it_is_not_ready_while_every_request_times_out(virtual):
    async def run():
        hung = UnknownHangs("hung", 0.01, nth=1)
        async with Dispatcher([hung], timeout=Timeouts(total=0.7)) as d:
            seen = []
            for _ in range(7):
                with pytest.raises(TaskError):
                    await d.infer(1)
                seen.append(d.ready)
            assert seen == [True, True, True, True, False, False, False], "3 s are no reason"
            await asyncio.sleep(29)
            assert not d.ready
            await asyncio.sleep(1.1)
            assert d.ready, "a request may show whether it is well"
            call = asyncio.ensure_future(d.infer(1))
            await asyncio.sleep(0.1)
            assert not d.ready
            with pytest.raises(TaskError):
                await call
            hung.nth = math.inf
            assert await d.infer(2) == 2
            assert d.ready

    virtual(run())


def test_it_is_not_ready_after_a_time_out_until_it_has_answered(virtual):
    async def run():
        hung = Hangs("hung", 0.01, nth=1)
        async with Dispatcher([hung], timeout=Timeouts(run=3.5), retries=0) as d:
            with pytest.raises(TaskError):
                await d.infer(1)
            await asyncio.sleep(0.5)
            assert (d.stats().devices[0].state, d.ready) == ("ready", False)
            hung.nth = math.inf
            assert await d.infer(1) == 1
            assert d.ready

    virtual(run())


def test_one_device_that_answers_is_enough_to_be_ready(virtual):
    async def run():
        async with Dispatcher([Hangs("hung", 0.01, 1), SimulatedDriver("b", 0.01)]) as d:
            async for _ in d.stream(range(500)):
                assert d.ready

    virtual(run())


def test_callers_with_little_patience_say_nothing_of_a_device(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.1)]) as d:
            for _ in range(100):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.09):
                        await d.infer(1)
            assert d.ready
            assert d.stats().devices[0].state != "suspect"

    virtual(run())


# ---- where the other device failed tasks before


class FailsAtFirst(Hangs):
    """A device that fails its first ``calls`` tasks, at once."""

    def __init__(self, name, service_time, calls, **options):
        super().__init__(name, service_time, **options)
        self.calls = calls

    async def work(self, batch):
        if len(self.batches) <= self.calls:
            return [ValueError("defect")] * len(batch)
        return await super().work(batch)


@pytest.mark.parametrize("hedge", [None, True])
@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("options", [{}, {"concurrency": 3}])
def test_a_device_that_is_held_back_runs_the_copy_once_no_other_answers(
    virtual, options, window, hedge
):
    """With a window of 1 no task waits that could show it that it is needed."""
    hung = Hangs("hung", 0.01, 40, **options)
    drivers = [hung, FailsAtFirst("failed", 0.001, 3)]
    pause, stats, _ = virtual(longest_pause(drivers, 100, window=window, hedge=hedge))
    assert stats.devices[1].faults
    assert pause <= bound(0.01)


def test_a_device_set_aside_runs_the_copy_while_all_others_are_busy(virtual):
    async def main():
        drivers = [Hangs("hung", 0.01, on=[7]), SimulatedDriver("slow", 3.0)]
        drivers.append(SimulatedDriver("aside", 0.05))
        async with Dispatcher(drivers, policy="greedy") as d:
            devices(d)[2].put_aside(True)
            before = now()
            hung, other = (asyncio.create_task(d.infer(x)) for x in (7, 8))
            assert await hung == 7
            assert now() - before <= bound(0.05)
            assert await other == 8
            stats = d.stats()
            assert [device.tasks for device in stats.devices[1:]] == [1, 1]

    virtual(main())
