"""Of devices that share something, the set takes part that does most together."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import combinations
from typing import Any

import pytest

from asyncinfer import Dispatcher
from asyncinfer.scheduling.sharing import Group
from asyncinfer.testing import SimulatedDriver, SimulatedHost

TASKS = 6000


class Case:
    """A host and its devices, and how fast each set of them is."""

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        chance = random.Random(f"sharing/{seed}")
        count = chance.randint(2, 6)
        self.noise = noise
        self.cores, self.contention = chance.uniform(1, 4), chance.choice([0, chance.random() / 5])
        self.devices = [(chance.uniform(0.002, 0.1), chance.uniform(0.05, 2)) for _ in range(count)]

    def rate(self, devices: Any, cores: float) -> float:
        host = SimulatedHost(cores, self.contention)
        alone = sum(1 / seconds for seconds, _ in devices)
        return alone * host.speed([demand for _, demand in devices])

    def best(self, cores: float) -> float:
        sizes = range(1, len(self.devices) + 1)
        sets = [each for size in sizes for each in combinations(self.devices, size)]
        return max(self.rate(each, cores) for each in sets)

    async def run(self, factor: float = 1.0) -> tuple[float, float]:
        """Parts of the best set's rate: over the whole job, and over its last third.

        After the first third the host's cores change by ``factor``.
        """
        host = SimulatedHost(self.cores, self.contention)
        drivers = [
            SimulatedDriver(f"d{at}", seconds, host=host, cores=demand, noise=self.noise)
            for at, (seconds, demand) in enumerate(self.devices)
        ]
        loop = asyncio.get_running_loop()
        begun, times = loop.time(), []
        async with Dispatcher(drivers) as dispatcher:
            async for value in dispatcher.stream(range(TASKS)):
                assert value == len(times)
                times.append(loop.time())
                if len(times) == TASKS // 3:
                    host.cores *= factor
        last = TASKS // 3 / (times[-1] - times[2 * TASKS // 3 - 1])
        return TASKS / (times[-1] - begun) / self.best(self.cores), last / self.best(host.cores)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_set_is_found_while_it_works(virtual, seed):
    whole, last = virtual(Case(seed).run())
    assert last > 0.95
    assert whole > 0.85  # a short job: the searching takes part of it


@pytest.mark.parametrize("seed", range(8, 11))
def test_it_is_found_where_service_times_vary(virtual, seed):
    _, last = virtual(Case(seed, noise=0.3).run())
    assert last > 0.9


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_found_anew_when_the_host_changes(virtual, seed, factor):
    _, last = virtual(Case(seed).run(factor))
    assert last > 0.95


@pytest.mark.parametrize("count", [2, 5, 20])
def test_devices_that_only_claim_to_share_lose_next_to_nothing(virtual, count):
    async def makespan(shares: Any) -> float:
        drivers = [
            SimulatedDriver(f"d{at}", 0.01 * (1 + at % 5), shares=shares) for at in range(count)
        ]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with Dispatcher(drivers) as dispatcher:
            async for _ in dispatcher.stream(range(TASKS)):
                pass
            assert not any(device.rests for device in dispatcher.stats().devices)
        return loop.time() - begun

    assert virtual(makespan(())) / virtual(makespan("a bus")) > 0.98


def crowded(host: SimulatedHost, **options: Any) -> list[SimulatedDriver]:
    """Two devices, of which the slow one harms the quick one more than it does itself."""
    quick = SimulatedDriver("quick", 0.01, host=host, cores=1.0, **options)
    return [quick, SimulatedDriver("slow", 0.1, host=host, cores=2.0)]


def test_a_device_that_rests_says_why(virtual):
    events = []

    async def run() -> str | None:
        async with Dispatcher(crowded(SimulatedHost(1.0)), on_event=events.append) as dispatcher:
            async for _ in dispatcher.stream(range(1000)):
                pass
            quick, slow = dispatcher.stats().devices
            assert quick.rests is None
            return slow.rests

    assert re.fullmatch(r"36\.\d+ tasks/s with it, (99\.\d+|100) without", virtual(run()))
    rests = [event for event in events if event.kind == "device.rests"]
    assert [event.device for event in rests] == ["slow"]
    assert "without" in rests[0].reason


def test_it_takes_part_at_once_when_the_others_fail(virtual):
    lost = asyncio.Event()

    def fail(x: int) -> object:
        return lost.is_set()

    async def run() -> None:
        async with Dispatcher(crowded(SimulatedHost(1.0), fail=fail)) as dispatcher:
            async for value in dispatcher.stream(range(1000)):
                if value == 900:
                    assert dispatcher.stats().devices[1].rests
                    lost.set()
            slow = dispatcher.stats().devices[1]
            assert slow.rests is None
            assert slow.tasks > 90

    virtual(run())


def test_it_takes_part_at_once_when_the_others_leave(virtual):
    async def run() -> None:
        async with Dispatcher(crowded(SimulatedHost(1.0))) as dispatcher:
            async for value in dispatcher.stream(range(300)):
                if value == 200:
                    await dispatcher.remove("quick")
                    assert dispatcher.stats().devices[0].name == "slow"
            assert dispatcher.stats().devices[0].rests is None

    virtual(run())


def test_a_task_that_failed_on_the_others_is_tried_on_it(virtual):
    async def run() -> list[int]:
        def fail(x: int) -> object:
            return ValueError("not here") if x == 500 else None

        drivers = crowded(SimulatedHost(1.0), fail=fail)
        async with Dispatcher(drivers, retries=1) as dispatcher:
            found = [value async for value in dispatcher.stream(range(1000))]
            assert dispatcher.stats().devices[1].rests
            return found

    assert virtual(run()) == list(range(1000))


def test_devices_of_other_hosts_are_never_touched(virtual):
    async def run() -> None:
        first, second = SimulatedHost(1.0, name="a"), SimulatedHost(1.0, name="b")
        drivers = [
            *crowded(first),
            SimulatedDriver("other", 0.01, host=second),
            SimulatedDriver("none", 0.02),
        ]
        async with Dispatcher(drivers) as dispatcher:
            async for _ in dispatcher.stream(range(2000)):
                pass
            rests = {device.name: device.rests for device in dispatcher.stats().devices}
        assert rests.pop("slow")
        assert set(rests.values()) == {None}

    virtual(run())


@pytest.mark.parametrize("policy", ["greedy", "static"])
def test_other_policies_have_every_device_work(virtual, policy):
    async def run() -> None:
        async with Dispatcher(crowded(SimulatedHost(1.0)), policy=policy) as dispatcher:
            async for _ in dispatcher.stream(range(300)):
                pass
            assert not any(device.rests for device in dispatcher.stats().devices)
            assert all(device.tasks > 10 for device in dispatcher.stats().devices)

    virtual(run())


def test_a_failure_in_working_it_out_costs_no_task(virtual, monkeypatch, caplog):
    def fails(*args: object) -> None:
        raise ArithmeticError("a fault of ours")

    monkeypatch.setattr(Group, "_look", fails)

    async def run() -> list[int]:
        async with Dispatcher(crowded(SimulatedHost(1.0))) as dispatcher:
            found = [value async for value in dispatcher.stream(range(300))]
            assert all(device.tasks > 10 for device in dispatcher.stats().devices)
            return found

    assert virtual(run()) == list(range(300))
    assert (
        len([record for record in caplog.records if "all of them take part" in record.message]) == 1
    )


def test_a_device_that_changes_its_batches_is_measured_anew(virtual):
    async def run() -> None:
        host = SimulatedHost(1.0)
        drivers = [
            SimulatedDriver("batches", 0.001, batch_cost=0.01, max_batch=16, host=host),
            SimulatedDriver("single", 0.02, host=host),
        ]
        async with Dispatcher(drivers) as dispatcher:
            async for _ in dispatcher.stream(range(5000)):
                pass
            batches, single = dispatcher.stats().devices
        assert batches.rests is None
        assert single.rests
        assert single.tasks < 100

    virtual(run())


def test_a_lost_device_comes_back_into_the_set(virtual):
    async def run() -> None:
        host = SimulatedHost(4.0)
        failing = SimulatedDriver("failing", 0.01, host=host, fail=lambda x: x == 500)
        async with Dispatcher([failing, SimulatedDriver("other", 0.01, host=host)]) as dispatcher:
            assert [x async for x in dispatcher.stream(range(4000))] == list(range(4000))
            assert dispatcher.stats().devices[0].tasks > 1000
            assert not any(device.rests for device in dispatcher.stats().devices)

    virtual(run())


def test_a_call_that_ends_in_another_group_than_it_began_in_is_left_out(virtual, caplog):
    """Its device is draining, and the one beside it has gone; a third one has come."""

    async def run() -> list[int]:
        host = SimulatedHost(4.0)
        drivers = [SimulatedDriver("gone", 1.0, host=host), SimulatedDriver("apart", 1.0)]
        drivers.append(SimulatedDriver("draining", 1.0, host=host))
        async with Dispatcher(drivers) as dispatcher, asyncio.TaskGroup() as group:
            stream = dispatcher.stream(range(9))
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.3)
            group.create_task(dispatcher.remove("draining"))
            await asyncio.sleep(0.3)
            await dispatcher.remove("gone", drain=False)
            await dispatcher.add(SimulatedDriver("new", 1.0, host=host))
            return [await first, *[value async for value in stream]]

    assert virtual(run()) == list(range(9))
    assert not caplog.records
