"""Tasks that take devices down with them: stopped before they have taken all."""

from __future__ import annotations

import asyncio
from collections import Counter

import inside
import pytest

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import DeviceLost, DeviceTimeout, PoisonTask, TaskError
from asyncinfer.testing import SimulatedDriver


class Watched(SimulatedDriver):
    """Dies of poisonous inputs, takes a while to open again, and notes what ran together."""

    def __init__(self, name, seconds, poison=(), reopen=0.5, **options):
        super().__init__(name, seconds, **options)
        self.poison, self.reopen = set(poison), reopen
        self.opens = 0
        self.now = Counter()
        self.calls = []

    async def open(self):
        self.opens += 1
        if self.opens > 1:
            await asyncio.sleep(self.reopen)
        await super().open()

    async def infer(self, batch):
        self.now.update(batch)
        self.calls.append((list(batch), sorted(self.now.elements())))
        try:
            outputs = await super().infer(batch)
        finally:
            self.now.subtract(batch)
        if self.poison & set(batch):
            raise DeviceLost(self.name, "reset itself")
        return outputs


async def run(drivers, tasks, **options):
    """Results, final statistics, events, and the least number of devices that were up."""
    events, up, opened = [], [], False

    def watch(event):
        events.append(event)
        if event.kind.startswith("device.") and opened:
            up.append(sum(s.state in ("ready", "busy") for s in d.stats().devices))

    d = Dispatcher(drivers, on_event=watch, **options)
    results = []
    async with d:
        opened = True
        least = len(drivers)
        async for r in d.results(range(tasks)):
            results.append(r)
            least = min([least, *up])
            up.clear()
    assert [r.index for r in results] == list(range(tasks))
    return results, d.stats(), events, least


def pool(count, poison, **options):
    return [Watched(f"d{n}", 0.1, poison, **options) for n in range(count)]


@pytest.mark.parametrize("devices", [3, 4, 6])
@pytest.mark.parametrize("retries", [2, 10])
@pytest.mark.parametrize("reopen", [0.0, 0.5, 3.0])
def test_it_ends_after_three_devices_and_never_takes_all(virtual, devices, retries, reopen):
    drivers = pool(devices, {7}, reopen=reopen)
    results, stats, events, least = virtual(run(drivers, 60, retries=retries))
    error = results[7].error
    assert isinstance(error, PoisonTask)
    assert (error.index, error.attempts) == (7, 3)
    assert len(set(error.devices)) == len(error.causes) == 3
    assert all(isinstance(cause, DeviceLost) for cause in error.causes)
    assert "3 devices were lost while it ran" in str(error)
    assert [r.index for r in results if r.error] == [7]
    assert stats.quarantined == stats.failed == 1
    quarantined = [e for e in events if e.kind == "task.quarantined"]
    assert [(e.index, e.error) for e in quarantined] == [(7, error)]
    assert sum(e.kind == "device.lost" for e in events) == 3
    assert least >= 1


def test_with_fewer_devices_it_ends_after_its_retries(virtual):
    for devices in (1, 2):
        results, stats, _, _ = virtual(run(pool(devices, {7}), 20))
        assert type(results[7].error) is TaskError
        assert results[7].attempts == 3
        assert stats.quarantined == 0
        assert [r.index for r in results if r.error] == [7]


def test_of_a_batch_the_innocent_are_cleared(virtual):
    drivers = pool(4, {9}, max_batch=8)
    results, stats, _, least = virtual(run(drivers, 100, policy="greedy"))
    assert [r.index for r in results if r.error] == [9]
    assert isinstance(results[9].error, PoisonTask)
    assert stats.quarantined == 1
    assert sum(driver.opens - 1 for driver in drivers) == 3
    assert max(r.attempts for r in results if not r.error) == 2
    assert least >= 1
    with_it = [batch for driver in drivers for batch, _ in driver.calls if 9 in batch]
    assert sorted(len(batch) for batch in with_it) == [1, 1, 8], "alone from the second time on"


def test_many_in_one_batch_take_one_device_at_a_time(virtual):
    poison = set(range(8))
    drivers = pool(5, poison, max_batch=8)
    results, _, _, least = virtual(run(drivers, 200, policy="greedy"))
    assert {r.index for r in results if r.error} == poison
    assert any(isinstance(r.error, PoisonTask) for r in results)
    assert least >= 1


def test_suspects_do_not_share_a_device(virtual):
    drivers = pool(3, {5}, concurrency=8)
    results, _, _, _ = virtual(run(drivers, 24, policy="greedy"))
    assert [r.index for r in results if r.error] == [5]
    assert max(r.attempts for r in results if not r.error) == 2


def test_a_device_that_is_wrong_itself_costs_no_task_its_life(virtual):
    drivers = [*pool(3, ()), Watched("bad", 0.1, range(10_000), max_batch=4)]
    results, stats, _, _ = virtual(run(drivers, 200))
    assert stats.failed == stats.quarantined == 0
    assert [r.value for r in results] == list(range(200))


def test_calls_that_never_end_count_as_well(virtual):
    class Hanging(Watched):
        async def infer(self, batch):
            if 5 in batch:
                await asyncio.sleep(1e6)
            return await super().infer(batch)

    drivers = [Hanging(f"d{n}", 0.1) for n in range(4)]
    results, _, _, least = virtual(run(drivers, 30, timeout=Timeouts(run=1.0)))
    assert isinstance(results[5].error, PoisonTask)
    assert all(isinstance(cause, DeviceTimeout) for cause in results[5].error.causes)
    assert least >= 1


def test_it_does_not_wait_for_ever_for_a_second_device(virtual):
    async def main():
        drivers = pool(3, {0}, reopen=1e5)
        async with Dispatcher(drivers, timeout=Timeouts(close=1.0, drain=1.0)) as d:
            result = await anext(d.results([0]))
            assert isinstance(result.error, PoisonTask)
            assert 5.0 <= asyncio.get_running_loop().time() < 6.0

    virtual(main())


def test_waiting_for_a_second_device_takes_no_time_of_the_processor(virtual):
    async def main():
        drivers = pool(3, {0}, reopen=1e5)
        async with Dispatcher(drivers, timeout=Timeouts(close=1.0, drain=1.0)) as d:
            passes = inside.count_passes(d)
            await anext(d.results([0]))
        assert len(passes) < 100

    virtual(main())


def test_a_removed_device_gives_a_suspect_back_as_one(virtual):
    async def main():
        a, b, c = Watched("a", 1.0, {0}), Watched("b", 5.0), Watched("c", 5.0)
        async with Dispatcher([a, b, c], policy="greedy") as d:
            stream = d.results(range(3))
            reading = asyncio.create_task(anext(stream))
            await asyncio.sleep(5.5)  # lost with a, it waited for b or c
            running = next(driver for driver in (b, c) if driver.now[0])
            await d.remove(running.name, drain=False)
            result = await reading
            assert (result.error, result.attempts) == (None, 2)
            await stream.aclose()

    virtual(main())


@pytest.mark.parametrize("hedge", [None, True])
def test_with_copies_too(virtual, hedge):
    drivers = pool(5, {7, 30})
    results, stats, _, least = virtual(run(drivers, 60, hedge=hedge))
    assert [r.index for r in results if r.error] == [7, 30]
    assert stats.quarantined == 2
    assert least >= 1


def test_a_suspect_is_not_copied(virtual):
    class Late(Watched):
        async def infer(self, batch):
            if 0 in batch and self.name != "a":
                await asyncio.sleep(50.0)
            return await super().infer(batch)

    drivers = [Late("a", 1.0, {0}), Late("b", 1.0), Late("c", 1.0)]
    results, stats, _, _ = virtual(run(drivers, 20, hedge=True))
    assert results[0].attempts == 2
    assert stats.hedging.started == 0
