"""The batch that serves the stream: full speed under load, no added latency when idle."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from fakes import Noting, Unknown

from asyncinfer import Dispatcher, config
from asyncinfer._core.devices.speed import BatchSize, Estimator
from asyncinfer.driver import ServiceTime
from asyncinfer.errors import ConfigError
from asyncinfer.testing import SimulatedDriver


def batching(name="g", service_time=0.001, *, kind=Noting, **options):
    """One that is the faster, the larger its batches."""
    return kind(name, service_time, **{"batch_cost": 0.02, "max_batch": 32, **options})


def calls_of(driver):
    """When its calls began and of how many tasks they were."""
    return [(round(at, 9), size) for at, size in zip(driver.called_at, driver.sizes, strict=True)]


KINDS = {
    "one": [("g", 0.001, 0.02)],
    "four alike": [(f"g{i}", 0.001, 0.02) for i in range(4)],
    "unlike": [("g", 0.001, 0.02), ("c", 0.01, 0.01), ("m", 0.1, 0.0)],
    "calls cost nothing": [("a", 0.002, 0.0), ("b", 0.004, 0.0)],
}


def drivers(kind, most):
    return [
        SimulatedDriver(name, t, batch_cost=cost, max_batch=most) for name, t, cost in KINDS[kind]
    ]


def capacity(kind):
    return sum(32 / (cost + 32 * t) for _, t, cost in KINDS[kind])


async def closed_loop(devices, tasks, window):
    async with Dispatcher(devices, window=window) as d:
        assert [y async for y in d.stream(range(tasks))] == list(range(tasks))
    return tasks / d.stats().elapsed


async def latency(devices, arrivals):
    """Mean seconds from the moment a task was meant to come to its result."""
    loop, total = asyncio.get_running_loop(), 0.0

    async def source():
        for at in arrivals:
            await asyncio.sleep(max(0.0, at - loop.time()))
            yield at

    async with Dispatcher(devices, window=4096, queue_size=10**6) as d:
        async for at in d.stream(source()):
            total += loop.time() - at
    return total / len(arrivals)


def poisson(rate, tasks):
    rng, now = random.Random(42), 0.0
    return [now := now + rng.expovariate(rate) for _ in range(tasks)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [64, 1024])
def test_under_load_it_is_as_fast_as_the_best_fixed_batch(virtual, kind, window):
    rates = {most: virtual(closed_loop(drivers(kind, most), 3000, window)) for most in (1, 8, 32)}
    assert rates[32] >= 0.98 * max(rates.values()), rates
    if window == 1024:
        assert rates[32] >= 0.97 * capacity(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_when_idle_nothing_waits(virtual, kind):
    arrivals = poisson(0.01 / sum(cost + t for _, t, cost in KINDS[kind]), 300)
    single, free = (virtual(latency(drivers(kind, most), arrivals)) for most in (1, 32))
    assert free <= 1.001 * single


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 1.1])
def test_at_every_load_it_is_near_the_best_fixed_batch(virtual, kind, load):
    arrivals = poisson(load * capacity(kind), 800)
    means = {most: virtual(latency(drivers(kind, most), arrivals)) for most in (1, 8, 32)}
    assert means[32] <= 1.12 * min(means.values()), means


@pytest.mark.parametrize("kind", KINDS)
def test_bursts_are_shared_out(virtual, kind):
    rate = capacity(kind) / 2
    arrivals = [(i // 32) * 32 / rate for i in range(1280)]
    means = {most: virtual(latency(drivers(kind, most), arrivals)) for most in (1, 8, 32)}
    assert means[32] <= 1.10 * min(means.values()), means


def test_devices_alike_share_what_waits(virtual):
    async def run():
        devices = [batching(f"g{i}") for i in range(4)]
        async with Dispatcher(devices) as d:
            await asyncio.gather(*(d.infer(x) for x in range(32)))
            return [device.sizes for device in devices], asyncio.get_running_loop().time()

    sizes, seconds = virtual(run())
    assert sizes == [[8]] * 4
    assert seconds == pytest.approx(0.028)


# ---- max_wait


async def calls(driver, pauses, **options):
    async with Dispatcher([driver], **options) as d:
        async with asyncio.TaskGroup() as group:
            for pause in pauses:
                group.create_task(d.infer(0))
                await asyncio.sleep(pause)
        return calls_of(driver)


def test_a_partly_filled_batch_may_wait_for_more(virtual):
    pauses = [0.003] * 10
    assert virtual(calls(batching(max_wait=0.0), pauses))[0] == (0.0, 1)
    assert virtual(calls(batching(max_wait=0.01), pauses))[0] == (0.01, 4)


def test_a_full_batch_waits_no_longer(virtual):
    driver = batching(max_wait=0.01, max_batch=3)
    assert virtual(calls(driver, [0.003] * 6))[0] == (0.006, 3)


def test_it_waits_no_longer_than_it_is_told(virtual):
    assert virtual(calls(batching(max_wait=0.01), [0.5, 0.5])) == [(0.01, 1), (0.51, 1)]


def test_nothing_waits_once_the_source_has_ended(virtual):
    async def run():
        driver = batching(max_wait=10.0)
        async with Dispatcher([driver]) as d:
            assert [y async for y in d.stream(range(37))] == list(range(37))
            return asyncio.get_running_loop().time()

    assert virtual(run()) < 1.0


def test_nothing_waits_where_the_window_is_full(virtual):
    async def endless():
        x = 0
        while True:
            yield x
            x += 1

    async def run():
        driver = batching(max_wait=10.0)
        async with Dispatcher([driver], window=5) as d, d.stream(endless()) as results:
            for _ in range(50):
                await anext(results)
            return driver.sizes, asyncio.get_running_loop().time()

    sizes, seconds = virtual(run())
    assert seconds < 1.0
    assert max(sizes) == 5


def test_nothing_waits_while_draining(virtual):
    async def run():
        driver = batching(max_wait=10.0)
        async with Dispatcher([driver]) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(0.001)
            assert calls_of(driver) == []
            await d.drain()
            assert await call == 1
            return asyncio.get_running_loop().time()

    assert virtual(run()) < 0.1


def test_another_device_need_not_wait(virtual):
    async def run():
        waits, other = batching("waits", max_wait=10.0), Noting("other", 0.002)
        async with Dispatcher([waits, other]) as d:
            await asyncio.gather(*(d.infer(x) for x in range(40)))
            return calls_of(waits), calls_of(other)

    waits, other = virtual(run())
    assert [at for at, _ in waits] == [0.0]
    assert other[0][0] == 0.0


# ---- latency_target, and what batches are worth


@pytest.mark.parametrize("estimate", [None, 0.0001, 0.01])
def test_a_target_bounds_the_batch(virtual, estimate):
    async def run():
        driver = batching(latency_target=0.03, estimate=estimate)
        async with Dispatcher([driver]) as d:
            assert len([y async for y in d.stream(range(2000))]) == 2000
        return driver.sizes

    sizes = virtual(run())
    assert Counter(sizes[20:-1]).most_common(1)[0][0] == 10
    assert max(sizes[20:]) <= 10


def test_a_target_that_no_batch_meets_leaves_one_task_a_call(virtual):
    async def run():
        driver = batching(latency_target=0.001)
        async with Dispatcher([driver]) as d:
            assert len([y async for y in d.stream(range(50))]) == 50
        return driver.sizes

    assert set(virtual(run())) == {1}


def test_before_anything_is_known_a_target_allows_one_task(virtual):
    class Silent(Unknown, Noting):
        pass

    async def run():
        driver = batching(kind=Silent, latency_target=0.03)
        async with Dispatcher([driver]) as d:
            assert len([y async for y in d.stream(range(2000))]) == 2000
        return driver.sizes

    sizes = virtual(run())
    assert sizes[0] == 1
    assert max(sizes) <= 10


def learnt(most, line, calls, target=None):
    size, estimator = BatchSize(most, target), Estimator()
    sizes = []
    for _ in range(calls):
        sizes.append(size.limit)
        estimator.learn(size.limit, line.of(size.limit))
        size.learn(estimator)
    return sizes


def test_batches_are_large_where_calls_cost_much():
    sizes = learnt(32, ServiceTime(0.02, 0.001), 500)
    assert Counter(sizes)[32] > 480
    assert sum(10 < size < 20 for size in sizes) > 3, "now and then another size is tried"


def test_batches_are_small_where_calls_cost_nothing():
    sizes = learnt(32, ServiceTime(0.0, 0.001), 500)
    assert Counter(sizes)[1] > 480


def test_batches_grow_again_where_calls_begin_to_cost():
    size, estimator = BatchSize(32, None), Estimator()
    for call in range(1000):
        line = ServiceTime(0.0 if call < 300 else 0.02, 0.001)
        estimator.learn(size.limit, line.of(size.limit))
        size.learn(estimator)
    assert size.limit >= 30


# ---- where the options are set


def test_every_driver_may_be_given_them():
    text = """
    [[device]]
    driver = "simulated"
    max_wait = 0.01
    latency_target = 0.05
    [device.options]
    service_time = 0.001
    """
    (device,) = config.parse(text).devices
    driver = device.build()
    assert (driver.max_wait, driver.latency_target) == (0.01, 0.05)


@pytest.mark.parametrize("value", ["true", '"soon"', "-1", "nan"])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ConfigError, match="'max_wait' must be seconds, 0 or more"):
        config.parse(f'[[device]]\ndriver = "simulated"\nmax_wait = {value}')


@pytest.mark.parametrize("value", [True, "soon", -1, float("inf")])
def test_a_driver_with_such_an_attribute_is_refused(value):
    driver = SimulatedDriver("d", 0.1)
    driver.latency_target = value
    with pytest.raises(ConfigError, match="'d': latency_target must be seconds"):
        Dispatcher([driver])


@pytest.mark.parametrize("seed", range(4))
def test_calls_that_vary_do_not_make_batches_small(seed):
    """Noise looks like a line without a cost of calls; smaller batches would then cost speed."""
    chance, estimator, size = random.Random(seed), Estimator(), BatchSize(64, None)
    sizes = []
    for _ in range(2000):
        sizes.append(size.limit)
        seconds = (0.003 + 0.0005 * size.limit) * chance.lognormvariate(-0.045, 0.3)
        estimator.learn(size.limit, seconds)
        size.learn(estimator)
    assert sum(sizes) / len(sizes) > 60


class Growing(Noting):
    """A driver that finds out while it works how large its batches should be."""

    async def infer(self, batch):
        outputs = await super().infer(batch)
        if len(self.sizes) == 3:
            self.max_batch = 8
        if len(self.sizes) == 6:
            self.max_batch = 0  # nonsense, which changes nothing
        return outputs


def test_a_driver_may_change_its_largest_batch_while_it_works(virtual):
    driver = batching(kind=Growing, max_batch=1)

    async def main():
        async with Dispatcher([driver], window=64) as dispatcher:
            assert [o async for o in dispatcher.stream(range(200))] == list(range(200))

    virtual(main())
    begun = driver.sizes.index(8)
    assert set(driver.sizes[:3]) == {1}
    assert 3 <= begun <= 6
    assert driver.sizes.count(8) >= 20
