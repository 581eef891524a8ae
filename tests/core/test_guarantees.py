"""What the earliest-finish-time rule promises, over random sets of devices on the virtual clock."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from fakes import simulated

from asyncinfer import Dispatcher, theory
from asyncinfer.testing import SimulatedDriver

#: stands for no window at all
UNBOUNDED = 10**6


async def run(devices, tasks, window=1024, policy="eft", queue_size=1024):
    """Seconds and statistics of one ordered stream."""
    async with Dispatcher(devices, window=window, policy=policy, queue_size=queue_size) as d:
        expected = iter(range(tasks))
        async for y in d.stream(range(tasks)):
            assert y == next(expected)
        assert next(expected, None) is None
    stats = d.stats()
    return stats.elapsed, stats


def unequal(n, spread, seed=42):
    """``n`` service times of mean 1 s whose standard deviation is ``spread`` times the mean."""
    rng = random.Random(f"{n} {spread} {seed}")
    sigma = math.sqrt(math.log1p(spread**2))
    times = [rng.lognormvariate(0, sigma) for _ in range(n)]
    rate = sum(1 / t for t in times)
    return [t * rate / n for t in times]  # the total rate is n for all


# ---- how unequal the devices are makes no difference


@pytest.mark.parametrize("n", [2, 4, 8, 16])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_the_makespan_is_the_optimum_however_unequal_they_are(virtual, n, spread):
    times = unequal(n, spread)
    optimum = theory.optimum_makespan(times, 1000)
    for window, queue_size in ((UNBOUNDED, 1000), (1000, 100), (100, 100), (n, 1000)):
        seconds, stats = virtual(run(simulated(times), 1000, window, queue_size=queue_size))
        if window >= theory.window_needed(times):
            assert seconds <= 1.01 * optimum, window
        elif window >= 100:
            assert seconds <= 1.02 * theory.windowed_makespan(times, 1000, window), window
        assert seconds <= 1.01 * 1000 * min(times), window  # the fastest alone
        assert stats.hold_mean < 0.01 * max(times), window


@pytest.mark.parametrize("n", [2, 4, 8, 16])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_noise_costs_at_most_a_tenth(virtual, n, spread):
    times = unequal(n, spread)
    optimum = theory.optimum_makespan(times, 1000)
    for window in (1000, 100):
        seconds, _ = virtual(run(simulated(times, noise=0.3), 1000, window))
        assert seconds <= 1.10 * optimum, window


@pytest.mark.parametrize("seed", range(12))
def test_results_are_not_held_where_plain_pull_holds_them(virtual, seed):
    rng = random.Random(seed)
    times = [10 ** rng.uniform(-2, 0) for _ in range(rng.randint(2, 8))]
    window = rng.choice([50, 200, 1000])
    _, plain = virtual(run(simulated(times), 500, window, "greedy"))
    _, ours = virtual(run(simulated(times), 500, window))
    assert ours.hold_mean <= 0.01 * max(times)
    assert ours.hold_mean <= plain.hold_mean + 1e-9


# ---- one device more is never a loss


def base_sets():
    return {
        "one": lambda: simulated([0.01]),
        "two": lambda: simulated([0.01, 0.015]),
        "unequal": lambda: simulated([0.01, 0.05, 0.2]),
        "calls at once": lambda: simulated([0.03, 0.04], concurrency=3),
        "batches": lambda: simulated([0.001, 0.002], batch_cost=0.02, max_batch=8),
        "batch and single": lambda: [
            SimulatedDriver("d0", 0.001, batch_cost=0.03, max_batch=16),
            SimulatedDriver("d1", 0.01),
        ],
    }


@pytest.mark.parametrize("base", base_sets())
@pytest.mark.parametrize("window", [8, 64, 512, 4096])
def test_adding_a_device_is_never_a_loss(virtual, base, window):
    make, tasks = base_sets()[base], 400
    kinds = ({}, {"max_batch": 4}, {"concurrency": 2})
    alone, _ = virtual(run(make(), tasks, window))
    for at, slower in enumerate((1, 1.3, 2, 3.7, 10, 33, 100, 330, 1000)):
        options = dict(kinds[at % 3])
        if "max_batch" in options:
            options["batch_cost"] = 0.01 * slower
        more = SimulatedDriver("more", 0.01 * slower, **options)
        together, _ = virtual(run([*make(), more], tasks, window))
        assert together <= 1.01 * alone, (slower, options)


# ---- what is not known, or changes


@pytest.mark.parametrize("policies", [("serial", "sync", "static", "greedy", "eft")])
@pytest.mark.parametrize("times", [[0.01, 0.012, 0.015], [0.02] * 4, [0.01, 0.3]])
@pytest.mark.parametrize("throttled", [0, -1])
def test_with_drift_no_policy_is_better_in_hindsight(virtual, policies, times, throttled):
    async def throttle(policy):
        devices = simulated(times)
        loop = asyncio.get_running_loop()
        async with Dispatcher(devices, policy=policy, window=1000) as d:
            async for y in d.stream(range(1000)):
                if y == 500:
                    devices[throttled].service_time *= 4
            return loop.time()

    seconds = {policy: virtual(throttle(policy)) for policy in policies}
    assert seconds["eft"] <= 1.03 * min(seconds.values()), seconds


@pytest.mark.parametrize("wrong", [0.1, 10.0])
@pytest.mark.parametrize("times", [[0.005, 1.0], [0.01, 0.02, 0.04], [0.1] * 4, [0.02, 0.2, 0.5]])
def test_a_wrong_first_estimate_costs_about_one_slow_task(virtual, wrong, times):
    for at in range(len(times)):
        devices = [
            SimulatedDriver(f"d{i}", t, estimate=t * wrong if i == at else None)
            for i, t in enumerate(times)
        ]
        seconds, _ = virtual(run(devices, 1000, 1000))
        assert seconds <= theory.optimum_makespan(times, 1000) + 1.1 * max(times), at
