"""The earliest-finish-time rule and its rivals: makespan, hold and order, against the theory."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from fakes import Unknown, simulated

from asyncinfer import Dispatcher, theory
from asyncinfer.scheduling import Grant
from asyncinfer.testing import SimulatedDriver

THREE = [0.005, 0.1, 1.0]
DOUBLING = [0.01, 0.02, 0.04, 0.08]
PAPER = [1.2, 1.5, 1.1, 2.0, 1.8, 1.3, 1.7, 1.4]


async def stream(drivers, tasks, window=1024, policy="eft", ordered=True):
    """Seconds and statistics of one stream."""
    loop = asyncio.get_running_loop()
    async with Dispatcher(drivers, window=window, policy=policy) as d:
        begun = loop.time()
        got = [y async for y in d.stream(range(tasks), ordered=ordered)]
        seconds = loop.time() - begun
    assert (got if ordered else sorted(got)) == list(range(tasks))
    return seconds, d.stats()


@pytest.mark.parametrize(
    ("times", "tasks", "window", "ratio", "peak", "greedy", "greedy_hold"),
    [
        (THREE, 100, 100, 1.000, 1, 2.083, 0.733),
        (THREE, 1000, 1000, 1.000, 1, 1.054, 0.507),
        (THREE, 10000, 100, 1.005, 1, 2.089, 0.728),
        (DOUBLING, 100, 100, 1.000, 3, 1.037, 0.023),
        (PAPER, 1000, 100, 1.000, 2, 1.000, 0.158),
    ],
)
def test_the_table_of_the_design(virtual, times, tasks, window, ratio, peak, greedy, greedy_hold):
    optimum = theory.optimum_makespan(times, tasks)
    seconds, stats = virtual(stream(simulated(times), tasks, window))
    assert seconds / optimum <= ratio + 0.0005
    assert stats.hold_mean < 1e-9
    assert stats.max_reorder <= peak
    seconds, stats = virtual(stream(simulated(times), tasks, window, "greedy"))
    assert seconds / optimum == pytest.approx(greedy, abs=0.001)
    assert stats.hold_mean == pytest.approx(greedy_hold, abs=0.001)


@pytest.mark.parametrize("seed", range(24))
def test_any_service_times_come_close_to_the_best_their_window_permits(virtual, seed):
    rng = random.Random(seed)
    times = [10 ** rng.uniform(-3, 0.5) for _ in range(rng.randint(1, 8))]
    window, tasks = rng.choice([100, 200, 1000]), rng.choice([300, 1000])
    seconds, stats = virtual(stream(simulated(times), tasks, window))
    assert seconds <= 1.02 * theory.windowed_makespan(times, tasks, window)
    if window >= theory.window_needed(times):
        assert seconds <= 1.01 * theory.optimum_makespan(times, tasks)
    assert stats.hold_mean < 0.01 * max(times)


@pytest.mark.parametrize("times", [THREE, DOUBLING, PAPER])
@pytest.mark.parametrize("seed", range(2))
def test_noise_costs_little(virtual, times, seed):
    drivers = simulated(times, noise=0.3, seed=seed)
    seconds, _ = virtual(stream(drivers, 1000, 1000))
    assert seconds <= 1.15 * theory.optimum_makespan(times, 1000)


@pytest.mark.parametrize("seed", range(40))
def test_noise_costs_little_with_any_service_times(virtual, seed):
    rng = random.Random(seed)
    times = [10 ** rng.uniform(-3, 0.3) for _ in range(rng.randint(2, 8))]
    drivers = simulated(times, noise=0.3, seed=seed)
    seconds, _ = virtual(stream(drivers, 1000, rng.choice([100, 300, 1000])))
    assert seconds <= 1.10 * theory.optimum_makespan(times, 1000)


@pytest.mark.parametrize("window", [100, 1000])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_devices_with_batches_and_calls_at_once_come_near_their_bound(virtual, window, concurrency):
    drivers = [
        SimulatedDriver("gpu", 0.001, batch_cost=0.02, max_batch=16, concurrency=concurrency),
        SimulatedDriver("remote", 0.01, batch_cost=0.03, max_batch=4, concurrency=2 * concurrency),
        SimulatedDriver("cpu", 0.02),
    ]
    rate = sum(
        d.concurrency * d.max_batch / (d.batch_cost + d.service_time * d.max_batch) for d in drivers
    )
    seconds, stats = virtual(stream(drivers, 4000, window))
    assert seconds <= 1.04 * 4000 / rate + 0.1  # 1 % of it is how ties between ends are broken
    assert stats.hold_mean < 0.036 / 2


@pytest.mark.parametrize("wrong", [1e-5, 0.01, 30.0])
def test_a_wrong_first_estimate_costs_about_one_slow_task(virtual, wrong):
    drivers = [SimulatedDriver("fast", 0.005), SimulatedDriver("slow", 1.0, estimate=wrong)]
    seconds, _ = virtual(stream(drivers, 3000, 3000))
    assert seconds <= theory.optimum_makespan([0.005, 1.0], 3000) + 1.1
    drivers = [SimulatedDriver("fast", 0.005, estimate=wrong), SimulatedDriver("slow", 1.0)]
    seconds, _ = virtual(stream(drivers, 3000, 3000))
    assert seconds <= theory.optimum_makespan([0.005, 1.0], 3000) + 1.1


def test_unknown_speeds_are_learnt(virtual):
    times = [0.005, 0.1, 1.0]
    drivers = [Unknown(f"d{i}", t) for i, t in enumerate(times)]
    seconds, _ = virtual(stream(drivers, 3000))
    assert seconds <= theory.optimum_makespan(times, 3000) + 1.1


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_device_that_changes_its_speed_midway_is_found_out(virtual, factor):
    async def drift():
        fast, slow = simulated([0.01, 0.04])
        loop = asyncio.get_running_loop()
        async with Dispatcher([fast, slow], window=100) as d:
            begun = loop.time()
            async for y in d.stream(range(4000)):
                if y == 2000:
                    changed = loop.time() - begun
                    fast.service_time *= factor
            return changed, loop.time() - begun - changed

    before, after = virtual(drift())
    assert before == pytest.approx(theory.optimum_makespan([0.01, 0.04], 2000), rel=0.01)
    best = theory.optimum_makespan([0.01 * factor, 0.04], 2000)
    assert after == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("window", [1, 2, 10, 100, 1000])
@pytest.mark.parametrize("slower", [1, 2, 3.7, 10, 33, 100, 1000])
def test_adding_a_slow_device_never_lowers_the_throughput(virtual, window, slower):
    without, _ = virtual(stream(simulated([0.01, 0.015]), 500, window))
    together, _ = virtual(stream(simulated([0.01, 0.015, 0.01 * slower]), 500, window))
    assert together <= 1.01 * without


@pytest.mark.parametrize("policy", ["eft", "greedy"])
def test_a_device_that_hangs_stops_no_other(virtual, policy):
    async def hang():
        stuck, well = simulated([0.01, 0.011])
        async with Dispatcher([stuck, well], policy=policy, window=50) as d:
            results = d.results(range(1000), ordered=False)
            got = [await anext(results) for _ in range(100)]
            stuck.service_time = 1e5
            got += [await anext(results) for _ in range(899)]
            assert {result.device for result in got[150:]} == {"d1"}
            await results.aclose()
            return asyncio.get_running_loop().time()

    assert virtual(hang()) < 1000 * 0.011 + 1


def test_a_call_goes_to_the_device_that_finishes_it_first(virtual):
    async def calls():
        async with Dispatcher(simulated([0.25, 1.0])) as d:
            loop = asyncio.get_running_loop()

            async def call(x):
                await d.infer(x)
                return loop.time()

            one = await call(0)
            together = await asyncio.gather(*map(call, range(6)))
            return one, [t - one for t in together], d.stats()

    one, ends, stats = virtual(calls())
    assert one == 0.25
    assert sorted(ends) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.25]
    assert [device.tasks for device in stats.devices] == [6, 1]


def test_a_free_fast_device_takes_waiting_work_whatever_the_others_do(virtual):
    """Its utilisation is 1 from the first task to the last."""
    for times in ([0.01, 0.05, 3.0], [0.01, 0.0101, 0.7], [0.01, 10.0]):
        _, stats = virtual(stream(simulated(times), 2000, window=2000))
        assert stats.devices[0].utilisation > 0.98


# ---- the baselines


def test_greedy_takes_the_makespan_of_the_formula(virtual):
    seconds, _ = virtual(stream(simulated(THREE), 1000, 1000, "greedy"))
    assert seconds == pytest.approx(theory.greedy_makespan(THREE, 1000))


def test_static_splits_equally(virtual):
    async def deal():
        async with Dispatcher(simulated(DOUBLING), policy="static", window=100) as d:
            return [r async for r in d.results(range(40))], asyncio.get_running_loop().time()

    results, seconds = virtual(deal())
    assert [result.device for result in results] == [f"d{i % 4}" for i in range(40)]
    assert seconds == pytest.approx(theory.static_makespan(DOUBLING, 40))


def test_sync_runs_in_rounds(virtual):
    seconds, stats = virtual(stream(simulated(DOUBLING), 40, policy="sync"))
    assert seconds == pytest.approx(theory.lockstep_makespan(DOUBLING, 40))
    assert [device.tasks for device in stats.devices] == [10] * 4


def test_serial_uses_the_first_device_only(virtual):
    seconds, stats = virtual(stream(simulated(DOUBLING, concurrency=2), 40, policy="serial"))
    assert seconds == pytest.approx(40 * DOUBLING[0])
    assert [device.tasks for device in stats.devices] == [40, 0, 0, 0]


def test_a_policy_of_ones_own(virtual):
    seen = []

    class LastFirst:
        reserves = False

        def pull(self, device, pool):
            seen.append((device.latency, device.expect(1), device.interval))
            seen.append((device.in_flight, device.free_in(pool.now), pool.index(0)))
            return Grant(pool.waiting - 1, 1)

    async def run():
        async with Dispatcher(simulated([0.1]), policy=LastFirst(), window=10) as d:
            return [r.index async for r in d.results(range(10), ordered=False)]

    order = virtual(run())
    assert seen[0] == seen[2] == pytest.approx((0.1, 0.1, 0.1))
    assert {(in_flight, free_in) for in_flight, free_in, _ in seen[1::2]} == {(0, 0.0)}
    assert order[1:] == sorted(order[1:], reverse=True)


def test_lanes_take_turns_with_every_policy(virtual):
    """No stream waits for another one to end, and no call for either."""

    async def run(policy):
        async with Dispatcher(simulated([0.01, 0.02]), policy=policy, window=50) as d:
            ends = {}

            async def consume(name, tasks):
                async for _ in d.stream(range(tasks)):
                    pass
                ends[name] = asyncio.get_running_loop().time()

            async with asyncio.TaskGroup() as group:
                group.create_task(consume("long", 600))
                group.create_task(consume("short", 60))
                await asyncio.sleep(0.1)
                await asyncio.gather(*(d.infer(x) for x in range(10)))
                ends["calls"] = asyncio.get_running_loop().time()
            return ends

    for policy in ("eft", "greedy", "static", "sync", "serial"):
        ends = virtual(run(policy))
        assert ends["calls"] < ends["short"] < 0.4 * ends["long"], policy
        assert not math.isnan(ends["long"])
