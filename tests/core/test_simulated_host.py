"""Devices that share a simulated host slow one another, exactly as its formula says."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any, NamedTuple

import pytest

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError
from asyncinfer.testing import SimulatedDriver, SimulatedHost, run_virtual


async def ends_of(host: SimulatedHost, *calls: tuple[float, float, float]) -> list[float]:
    """When calls end on ``host`` that start, take alone, and want cores as given."""
    loop, ends = asyncio.get_running_loop(), [math.nan] * len(calls)
    begun = loop.time()

    async def call(at: int, start: float, seconds: float, cores: float) -> None:
        await asyncio.sleep(start)
        await host.run(seconds, cores)
        ends[at] = loop.time() - begun

    async with asyncio.TaskGroup() as tasks:
        for at, told in enumerate(calls):
            tasks.create_task(call(at, *told))
    return ends


def test_a_call_alone_takes_its_time(virtual):
    assert virtual(ends_of(SimulatedHost(), (0, 0.1, 1), (0.3, 0.7, 2))) == [0.1, 1.0]
    assert virtual(ends_of(SimulatedHost(1.0), (0, 0.1, 2))) == [0.2]  # wants more than there is
    assert virtual(ends_of(SimulatedHost(1.0), (0, 0.0, 1))) == [0.0]


@pytest.mark.parametrize("cores", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("contention", [0.0, 0.15])
@pytest.mark.parametrize("demands", [[1.0], [1.0, 1.0], [0.25, 2.0], [0.1] * 8, [0.0, 0.0]])
def test_calls_side_by_side_take_as_long_as_the_formula_says(virtual, cores, contention, demands):
    ends = virtual(ends_of(SimulatedHost(cores, contention), *((0, 0.1, d) for d in demands)))
    speed = min(1, cores / sum(demands)) if sum(demands) else 1
    speed /= 1 + contention * (len(demands) - 1)
    assert ends == pytest.approx([0.1 / speed] * len(demands))


def test_what_begins_and_ends_changes_the_speed_of_the_others(virtual):
    host = SimulatedHost(1.0, 0.25)
    # 1 s alone; with two at 1/2/1.25 = 0.4 for 1.25 s, until the second has its 0.5 s; 1.5 s alone
    assert virtual(ends_of(host, (0, 3, 1), (1, 0.5, 1))) == pytest.approx([3.75, 2.25])


def test_a_cancelled_call_leaves_the_host_at_once(virtual):
    host = SimulatedHost(1.0)

    async def main() -> list[float]:
        other = asyncio.create_task(host.run(100.0))
        asyncio.get_running_loop().call_later(1.0, other.cancel)
        ends = await ends_of(host, (0, 1.0, 1))
        assert other.cancelled()
        return ends

    assert virtual(main()) == [1.5]


def test_another_number_of_cores_takes_effect_at_once(virtual):
    host = SimulatedHost(2.0)

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, setattr, host, "cores", 0.5)
        loop.call_later(3.0, setattr, host, "cores", 4.0)
        return await ends_of(host, (0, 2.0, 1), (0, 3.0, 1))

    # 1 s at full speed, 2 s at a quarter of it, the rest at full speed
    assert virtual(main()) == pytest.approx([3.5, 4.5])
    assert host.cores == 4.0


def test_one_host_serves_loop_after_loop():
    host = SimulatedHost(1.0)
    both = ((0, 1.0, 1), (0, 1.0, 1))
    assert [run_virtual(ends_of(host, *both)) for _ in range(3)] == [[2.0, 2.0]] * 3

    async def left_running() -> None:
        host.cores = 0.5
        asyncio.get_running_loop().create_task(host.run(1.0))
        await asyncio.sleep(0.5)

    run_virtual(left_running())
    host.cores = 1.0
    assert run_virtual(ends_of(host, *both)) == [2.0, 2.0]


def test_calls_of_a_loop_that_is_gone_are_forgotten():
    host, loop = SimulatedHost(1.0), asyncio.new_event_loop()
    call = host.run(1.0)
    stuck = loop.create_task(call)
    loop.run_until_complete(asyncio.sleep(0))

    async def beside() -> None:
        await host.run(1.0)

    with pytest.raises(ConfigError, match="another event loop: give each loop a host of its own"):
        run_virtual(beside())
    stuck.cancel()
    loop.run_until_complete(asyncio.wait([stuck]))
    loop.close()
    assert run_virtual(ends_of(host, (0, 1.0, 1))) == [1.0]


class Call(NamedTuple):
    """Times in steps of the integration."""

    start: int
    seconds: float
    cores: float
    #: when it is cancelled, if it still runs
    cancelled: int


class Case(NamedTuple):
    contention: float
    #: how many from which step on
    cores: list[tuple[int, float]]
    calls: list[Call]


#: seconds of one step
STEP = 1e-3


def drawn(seed: int) -> Case:
    chance = random.Random(seed)
    calls = [
        Call(
            chance.randrange(1000),
            chance.choice((0.02, 0.1, 0.3, chance.random())),
            chance.choice((1.0, 2 * chance.random())),
            chance.choice((10**9, 10**9, chance.randrange(2000))),
        )
        for _ in range(chance.randrange(1, 9))
    ]
    changes = sorted(chance.sample(range(1, 2000), chance.choice((0, 1, 3))))
    cores = [(at, chance.choice((0.5, 1.0, 2.0, 4 * chance.random() + 0.1))) for at in changes]
    return Case(chance.choice((0.0, 0.2 * chance.random())), [(0, 2.0), *cores], calls)


def integrated(case: Case) -> list[float]:
    """When each call ends, by small steps of time; ``nan`` if it is cancelled before."""
    left = [call.seconds for call in case.calls]
    ends = [math.nan] * len(left)
    for step in range(60_000):
        cores = next(number for at, number in reversed(case.cores) if at <= step)
        running = [
            at
            for at, call in enumerate(case.calls)
            if call.start <= step < call.cancelled and left[at] > 0
        ]
        demand = sum(case.calls[at].cores for at in running)
        for at in running:
            left[at] -= STEP * min(1, cores / demand) / (1 + case.contention * (len(running) - 1))
            if left[at] <= 0:
                ends[at] = (step + 1) * STEP
        if not running and step > 2000:
            break
    return ends


async def simulated(case: Case) -> list[float]:
    host = SimulatedHost(case.cores[0][1], case.contention)
    loop, ends = asyncio.get_running_loop(), [math.nan] * len(case.calls)

    async def run(at: int, call: Call) -> None:
        await asyncio.sleep(call.start * STEP)
        if call.cancelled > call.start:
            async with asyncio.timeout((call.cancelled - call.start) * STEP):
                await host.run(call.seconds, call.cores)
            ends[at] = loop.time()

    for step, cores in case.cores:
        loop.call_at(step * STEP, setattr, host, "cores", cores)
    running = (run(at, call) for at, call in enumerate(case.calls))
    await asyncio.gather(*running, return_exceptions=True)
    await asyncio.sleep(10.0)
    return ends


@pytest.mark.parametrize("seed", range(60))
def test_it_is_what_small_steps_of_time_lead_to(virtual, seed):
    case = drawn(seed)
    exact, stepped = virtual(simulated(case)), integrated(case)
    for call, one, other in zip(case.calls, exact, stepped, strict=True):
        if math.isnan(one) != math.isnan(other):  # ends as it is cancelled
            assert min(one, other, key=math.isnan) == pytest.approx(call.cancelled * STEP, abs=0.02)
        else:
            assert one == pytest.approx(other, abs=0.02, nan_ok=True)


def test_noise_and_batches_are_part_of_the_time_alone(virtual):
    """Two devices whose calls run beside each other take twice as long on one core."""

    async def ends(**where: Any) -> list[float]:
        loop = asyncio.get_running_loop()
        begun, found = loop.time(), []
        driver = SimulatedDriver("a", 0.01, noise=0.3, batch_cost=0.02, max_batch=4, **where)
        other = host.run(1e3) if where else asyncio.sleep(0)
        beside = asyncio.create_task(other)
        await driver.open()
        for batch in ([1], [1, 2], [1, 2, 3, 4]):
            assert await driver.infer(batch) == batch
            found.append(loop.time() - begun)
        beside.cancel()
        await asyncio.wait([beside])
        return found

    host = SimulatedHost(1.0)
    alone = virtual(ends())
    assert virtual(ends(host=host)) == pytest.approx([2 * end for end in alone])


def test_on_a_large_host_devices_are_as_without_one(virtual):
    async def finished(host: SimulatedHost | None) -> list[float]:
        drivers = [
            SimulatedDriver(f"d{at}", 0.01 * (at + 1), noise=0.3, host=host, cores=0.5, shares=())
            for at in range(4)
        ]
        async with Dispatcher(drivers) as dispatcher:
            return [result.finished async for result in dispatcher.results(range(300))]

    expected = virtual(finished(None))
    assert virtual(finished(SimulatedHost(2.0))) == pytest.approx(expected)


def test_its_devices_slow_one_another_in_a_stream(virtual):
    async def makespan() -> float:
        host = SimulatedHost(1.0, 0.1)
        drivers = [SimulatedDriver(name, 0.01, host=host, shares=()) for name in "ab"]
        async with Dispatcher(drivers) as dispatcher:
            return max([r.finished async for r in dispatcher.results(range(100))])

    assert virtual(makespan()) == pytest.approx(100 * 0.01 * 1.1)  # no better than one alone


@pytest.mark.parametrize("cores", [0.0, -1.0, math.nan, math.inf])
def test_a_host_has_cores(cores):
    with pytest.raises(ConfigError, match="host 'pi': cores must be"):
        SimulatedHost(cores, name="pi")
    host = SimulatedHost()
    with pytest.raises(ConfigError, match="cores must be"):
        host.cores = cores
    assert host.cores == 2.0


def test_what_makes_no_sense_is_said():
    with pytest.raises(ConfigError, match="contention must be 0 or more, not -1"):
        SimulatedHost(contention=-1)
    with pytest.raises(ConfigError, match="needs a name"):
        SimulatedHost(name="")
    with pytest.raises(ConfigError, match="device 'a': cores must be 0 or more, not -1"):
        SimulatedDriver("a", 0.1, cores=-1)
    with pytest.raises(ConfigError, match="device 'a': host must be a SimulatedHost, not 'pi'"):
        SimulatedDriver("a", 0.1, host="pi")  # type: ignore[arg-type]


def test_a_late_timer_makes_no_difference(virtual):
    """The loop stands still for 10 s, in which two calls end and a third goes on alone."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, setattr, loop._jumping, "now", 10.0)
        return await ends_of(SimulatedHost(1.0), (0, 1.0, 1), (0, 1.0, 1), (0, 100.0, 1))

    assert virtual(main()) == pytest.approx([10.0, 10.0, 102.0])


async def test_it_works_in_real_time_too():
    host = SimulatedHost(1.0, 0.1)
    drivers = [SimulatedDriver(name, 0.001, host=host) for name in "abc"]
    async with Dispatcher(drivers) as dispatcher:
        assert [y async for y in dispatcher.stream(range(50))] == list(range(50))
