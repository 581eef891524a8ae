"""Statistics and events: exact on the virtual clock."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random

import pytest
from fakes import Faulty, Unusual

from asyncinfer import Dispatcher
from asyncinfer.stats import DeviceState, DispatcherStats, percentile
from asyncinfer.testing import SimulatedDriver


def test_statistics_of_a_simple_run(virtual):
    async def run():
        drivers = [SimulatedDriver("a", 1.0), SimulatedDriver("b", 3.0)]
        async with Dispatcher(drivers, policy="greedy") as d:
            before = d.stats()
            stream = d.stream(range(8))
            await anext(stream)
            await asyncio.sleep(0.5)
            during = d.stats()
            async for _ in stream:
                pass
            await asyncio.sleep(10)
            return before, during, d.stats()

    before, during, after = virtual(run())
    assert (before.submitted, before.finished, before.throughput, before.elapsed) == (0, 0, 0, 0)
    assert before.latency_p99 == before.hold_mean == before.hold_max == 0
    assert [device.state for device in before.devices] == ["ready", "ready"]
    assert [device.state for device in during.devices] == ["busy", "busy"]
    assert (during.submitted, during.finished, during.running, during.waiting) == (8, 1, 2, 5)
    assert [device.busy_seconds for device in during.devices] == [1.5, 1.5]
    assert [device.in_flight for device in during.devices] == [1, 1]

    a, b = after.devices
    assert (a.name, a.tasks, a.batches, a.errors, a.in_flight) == ("a", 6, 6, 0, 0)
    assert (b.name, b.tasks, b.batches) == ("b", 2, 2)
    assert (a.service_time, a.latency) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (a.busy_seconds, b.busy_seconds) == (6.0, 6.0)
    assert (a.utilisation, b.utilisation) == (1.0, 1.0), "up to the last end"
    assert (after.submitted, after.finished, after.failed, after.retried) == (8, 8, 0, 0)
    assert (after.elapsed, after.throughput) == (6.0, pytest.approx(8 / 6))
    assert after.queue_depth == after.waiting == after.running == after.reorder_buffer == 0
    # task 2 ends at 2 and waits for 1, which ends at 3; 6 ends at 5 and waits for 5
    assert after.max_reorder in (1, 2)
    assert after.hold_max == 1.0
    assert after.hold_mean == pytest.approx((1.0 + 1.0) / 8)
    assert after.latency_p50 == 3.0
    assert after.latency_p99 == 6.0


def test_a_device_with_calls_at_once_and_batches(virtual):
    async def run():
        driver = SimulatedDriver("a", 0.5, batch_cost=1.0, max_batch=4, concurrency=2)
        async with Dispatcher([driver]) as d:
            async for _ in d.stream(range(80)):
                pass
            return d.stats()

    stats = virtual(run())
    (device,) = stats.devices
    assert device.tasks == 80
    assert device.batches == pytest.approx(20, abs=2)
    assert device.latency == pytest.approx(3.0, rel=0.05)
    assert device.service_time == pytest.approx(3.0 / 8, rel=0.05)
    assert device.busy_seconds == stats.elapsed
    assert device.utilisation == 1.0


def test_a_snapshot_is_frozen():
    assert dataclasses.fields(DispatcherStats)
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        object.__new__(DispatcherStats).devices = ()


def test_events_tell_the_whole_story(virtual):
    async def run():
        events = []
        faults = [True]
        a = SimulatedDriver("a", 1.0)
        b = SimulatedDriver("b", 3.0, fail=lambda x: x == 2 and faults and faults.pop())
        async with Dispatcher([a, b], policy="static", on_event=events.append, retries=1) as d:
            assert await d.infer("x") == "x"
            async for _ in d.results([0, 2, 2]):
                pass
            await asyncio.sleep(1)
        return events

    events = virtual(run())
    assert [e.time for e in events] == sorted(e.time for e in events)
    of_devices = [(e.kind, e.device) for e in events if e.index == -1]
    about_a = [kind for kind, name in of_devices if name == "a"]
    assert about_a == ["device.opening", "device.ready", "device.draining", "device.removed"]
    about_b = [kind for kind, name in of_devices if name == "b"]
    assert about_b == [
        "device.opening",
        "device.ready",
        "device.lost",
        "device.backing_off",
        "device.opening",
        "device.ready",
        "device.draining",
        "device.removed",
    ]
    of_tasks = [(e.kind, e.stream, e.index, e.device) for e in events if e.index >= 0]
    assert of_tasks[0] == ("task.finished", 0, 0, "a")
    assert ("task.retried", 1, 1, "b") in of_tasks
    assert sum(kind == "task.finished" for kind, *_ in of_tasks) == 4
    retried = next(e for e in events if e.kind == "task.retried")
    assert "was lost" in str(retried.error)
    assert retried.started < retried.time


def test_every_end_is_one_event(virtual):
    async def run():
        ends = []
        rng = random.Random(7)
        fail = lambda x: ValueError("no") if rng.random() < 0.3 else None  # noqa: E731

        def hook(event):
            if event.kind in ("task.finished", "task.failed"):
                ends.append((event.stream, event.index))

        drivers = [SimulatedDriver(n, t, fail=fail) for n, t in (("a", 0.1), ("b", 0.3))]
        async with Dispatcher(drivers, on_event=hook, retries=1) as d:
            for _ in range(3):
                async for _ in d.stream(range(50), return_exceptions=True):
                    pass
        return sorted(ends), d.stats()

    ends, stats = virtual(run())
    assert ends == [(stream, index) for stream in (1, 2, 3) for index in range(50)]
    assert 0 < stats.failed < 75
    assert stats.retried > stats.failed


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, Unusual])
def test_a_hook_that_raises_is_logged_once_and_harmless(virtual, caplog, error):
    def hook(event):
        raise error

    async def run():
        drivers = [SimulatedDriver("a", 1.0), Faulty("b", 1.0, [ValueError("no")])]
        async with Dispatcher(drivers, on_event=hook, hedge=True) as d:
            assert await d.infer(0) == 0
            assert [y async for y in d.stream(range(30))] == list(range(30))
            assert [device.failures for device in d.stats().devices] == [0, 0]
            assert {device.state for device in d.stats().devices} == {DeviceState.READY}

    with caplog.at_level(logging.ERROR):
        virtual(run())
    assert caplog.text.count("on_event failed on device.opening") == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_hook_that_wants_to_exit_ends_the_event_loop(error):
    def hook(event):
        if event.kind == "task.finished":
            raise error

    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.0)], on_event=hook) as d:
            await d.infer(0)
            await asyncio.sleep(60)

    with pytest.raises(error):
        asyncio.run(run())


def test_a_result_has_the_whole_history(virtual):
    async def run():
        await asyncio.sleep(100)
        async with Dispatcher([SimulatedDriver("a", 2.0)]) as d:
            results = d.results(["x", "y"])
            first = await anext(results)
            await asyncio.sleep(5)
            return first, await anext(results)

    first, second = virtual(run())
    assert (first.index, first.value, first.error, first.device) == (0, "x", None, "a")
    assert (first.submitted, first.started, first.finished, first.delivered) == (100, 100, 102, 102)
    assert (second.started, second.finished, second.delivered) == (102, 104, 107)
    assert second.attempts == 1


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_percentiles_by_nearest_rank(q):
    values = list(range(1, 101))
    random.Random(1).shuffle(values)
    assert percentile(values, q) == max(1, math.ceil(q * 100))
    assert percentile([], q) == 0.0
    assert percentile([7.0], q) == 7.0
