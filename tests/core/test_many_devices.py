"""Hundreds of devices: what they do is expected rather than summed up, and few are asked."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from fakes import Unknown, simulated

from asyncinfer import Dispatcher, theory
from asyncinfer.scheduling import ALL_REST, EarliestFinish, Grant
from asyncinfer.scheduling.census import Census
from asyncinfer.testing import SimulatedDriver


def log_uniform(n, decades=2.0, seed=42):
    rng = random.Random(seed)
    return [0.01 * 10 ** rng.uniform(0, decades) for _ in range(n)]


class Counting(EarliestFinish):
    asked = 0

    def pull(self, device, pool):
        self.asked += 1
        return super().pull(device, pool)


async def stream(times, tasks, *, noise=0.0, window=None):
    """Makespan by the optimum, statistics, and pulls a task."""
    policy = Counting()
    window = window or int(1.1 * theory.window_needed(times)) + 10
    async with Dispatcher(
        simulated(times, noise=noise), policy=policy, window=window, queue_size=window
    ) as d:
        got = [y async for y in d.stream(range(tasks))]
    assert got == list(range(tasks))
    stats = d.stats()
    return stats.elapsed / theory.optimum_makespan(times, tasks), stats, policy.asked / tasks


SETS = {
    "64 over two decades": log_uniform(64),
    "100 over three decades": log_uniform(100, 3.0),
    "1000 over two decades": log_uniform(1000),
    "of two kinds": [0.01] * 50 + [0.037] * 50,
    "of three kinds": [0.01] * 30 + [0.055] * 30 + [0.5] * 40,
    "few fast ones": [0.001] * 3 + [0.1] * 97,
    "alike": [0.1] * 200,
    "nearly alike": [0.1 + 0.0001 * i for i in range(100)],
}


@pytest.mark.parametrize("times", SETS.values(), ids=SETS)
def test_the_expected_count_is_as_good_as_the_sum(virtual, times):
    ratio, stats, asked = virtual(stream(times, 10 * len(times)))
    assert ratio <= 1.01
    assert stats.hold_mean < 0.01 * max(times) or max(times) < 2 * min(times)
    assert asked < 4


def test_the_window_may_keep_most_of_them_out(virtual):
    times = log_uniform(100)
    ratio, stats, asked = virtual(stream(times, 5000, window=300))
    best = theory.windowed_makespan(times, 5000, 300) / theory.optimum_makespan(times, 5000)
    assert ratio <= 1.02 * best
    assert stats.hold_mean < 0.01
    assert asked < 4


@pytest.mark.parametrize("times", [log_uniform(100), [0.1] * 100], ids=["unlike", "alike"])
def test_noise_costs_little_in_a_wide_window(virtual, times):
    window = 4 * theory.window_needed(times)
    ratio, _, _ = virtual(stream(times, 50 * len(times), noise=0.3, window=window))
    assert ratio <= 1.10


def test_with_63_the_sum_is_exact(virtual):
    ratio, stats, _ = virtual(stream(log_uniform(63), 1000))
    assert ratio == pytest.approx(1.0, abs=1e-3)
    assert stats.hold_mean < 1e-9


def test_many_that_hang_are_soon_not_counted_on(virtual):
    """A slow device that rested takes over, though it would have if nothing else happened."""

    async def run():
        fast, slow = simulated([0.01] * 79), SimulatedDriver("slow", 0.9)
        async with Dispatcher([*fast, slow], window=2000) as d:
            results = d.results(range(5000), ordered=False)
            got = [await anext(results) for _ in range(2000)]
            for driver in fast:
                driver.service_time = 1e5
            # those that run yet end as they should, and each then hangs with its next task
            got += [await anext(results) for _ in range(100)]
            await results.aclose()
            return got[-1]

    last = virtual(run())
    assert last.device == "slow"
    assert last.finished < 45


def test_every_free_device_is_asked_by_a_policy_of_ones_own(virtual):
    seen = set()

    class Choosy:
        reserves = False

        def pull(self, device, pool):
            seen.add(device.position)
            return Grant(0, 1) if device.position == 99 else None

    async def run():
        async with Dispatcher(simulated([0.1] * 100), policy=Choosy(), window=10) as d:
            return [y async for y in d.stream(range(5))]

    assert virtual(run()) == list(range(5))
    assert seen == set(range(100))


def test_after_all_rest_others_are_asked_now_and_then(virtual):
    seen = set()

    class First(EarliestFinish):
        def pull(self, device, pool):
            seen.add(device.position)
            return Grant(0, 1) if device.position == 0 else ALL_REST

    async def run():
        times = [0.01 + 0.001 * i for i in range(20)]
        async with Dispatcher(simulated(times), policy=First(), window=10) as d:
            async for y in d.stream(range(1000)):
                if y == 10:
                    assert len(seen) < 10
        return d.stats()

    stats = virtual(run())
    assert stats.devices[0].tasks == 1000
    assert seen == set(range(20))


def test_one_of_many_that_has_become_fast_again_is_found_out(virtual):
    async def run():
        many = simulated([1.0] * 64 + [2.5])
        async with Dispatcher(many, window=80) as d:
            many[-1].service_time = 1.0
            results = d.results(range(10**9))
            while (result := await anext(results)).device != "d64":
                pass
            await results.aclose()
            return result.started

    assert virtual(run()) == pytest.approx(500, rel=0.02)


def test_devices_of_unknown_speed_among_many_are_tried(virtual):
    async def run():
        silent = [Unknown(f"s{i}", 0.02) for i in range(30)]
        async with Dispatcher([*simulated([0.01] * 70), *silent], window=1000) as d:
            assert [y async for y in d.stream(range(2000))] == list(range(2000))
        return d.stats()

    assert min(device.tasks for device in virtual(run()).devices) > 5


def test_devices_come_and_go_among_many(virtual):
    async def run():
        async with Dispatcher(simulated([0.01] * 70), window=1000) as d:
            stream = d.stream(range(3000))
            got = []
            async for y in stream:
                got.append(y)
                if y == 500:
                    await asyncio.gather(*(d.remove(f"d{i}") for i in range(30)))
                if y == 1000:
                    for i in range(5):
                        await d.add(SimulatedDriver(f"new{i}", 0.005))
            return got, d.stats()

    got, stats = virtual(run())
    assert got == list(range(3000))
    assert len(stats.devices) == 45
    assert min(device.tasks for device in stats.devices) > 20


# ---- the census


def counted(figures):
    census = Census()
    for one in figures:
        census.count(one)
    return census


def test_the_census_sums_up_what_devices_faster_than_a_class_do():
    rng = random.Random(1)
    figures = [(t, t / rng.choice([1, 4]), rng.choice([0.0, 0.2])) for t in log_uniform(300, 6.0)]
    census = counted(figures)
    for latency in log_uniform(50, 6.0, seed=2):
        low, high = (
            sum((1.3 * latency - k) / t for k, t, _ in figures if k < bound)
            for bound in (latency / 1.045, latency)
        )
        assert low - 1e-6 <= census.finished_before(latency, 1.3 * latency) <= high + 1e-6
        within = sum(latency <= k <= 2 * latency for k, _, _ in figures)
        wide = sum(latency / 1.045 <= k <= 2.09 * latency for k, _, _ in figures)
        assert within <= census.between(latency, 2 * latency) <= wide
    assert census.rate == pytest.approx(sum(1 / t for _, t, _ in figures))
    assert census.deviation == pytest.approx(0.2)


def test_the_census_forgets_without_a_trace():
    rng = random.Random(3)
    figures = [(t, t, rng.random()) for t in log_uniform(100, 9.0)]
    census = counted(figures)
    for one in figures[1:]:
        census.count(one, -1)
    latency, interval, deviation = figures[0]
    assert census.rate == pytest.approx(1 / interval)
    assert census.deviation == pytest.approx(deviation)
    assert census.finished_before(latency, latency) == pytest.approx(0, abs=1e-6)
    assert census.finished_before(2 * latency, 2 * latency) == pytest.approx(1)


@pytest.mark.parametrize("latency", [0.0, 1e-12, 1e7, 1e12])
def test_the_census_takes_any_latency(latency):
    census = counted([(latency, max(latency, 1e-9), 0.0)])
    assert census.between(latency, 2 * latency) == 1
    assert math.isfinite(census.finished_before(1.0, 1.0))
