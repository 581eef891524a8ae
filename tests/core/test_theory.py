"""The formulas, against the slow and obvious ways to get the same figures."""

import heapq
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinfer import theory

THREE = [0.005, 0.1, 1.0]
PAPER = [1.2, 1.5, 1.1, 2.0, 1.8, 1.3, 1.7, 1.4]

seconds = st.floats(min_value=1e-3, max_value=10.0)
devices = st.lists(seconds, min_size=1, max_size=8)
ticks = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def pull(times, tasks):
    """Plain pull, one task at a time; times are multiplied, not added up, so that ties are ties."""
    free = [(0.0, i, 0) for i in range(len(times))]
    end = 0.0
    for _ in range(tasks):
        _, i, run = heapq.heappop(free)
        heapq.heappush(free, ((run + 1) * times[i], i, run + 1))
        end = max(end, (run + 1) * times[i])
    return end


def best_rate(times, window, *, hold, steps=240):
    """Best rate of any schedule: try every one, step by step, over integer service times.

    Without ``hold``, schedules in which a finished result waits for an earlier one are left out.

    A state is the running (index - head, time left) of each device and the finished indices.
    """
    values = {(tuple((-1, 0) for _ in times), frozenset()): 0}
    history = [0]
    for _ in range(steps):
        following = {}
        for (running, done), value in values.items():
            for start in starts(running, done, window):
                state, gain = advance(start, done, times)
                if state[1] and not hold:
                    continue
                following[state] = max(following.get(state, -1), value + gain)
        values = following
        history.append(max(values.values()))
    half = steps // 2
    return (history[-1] - history[half]) / half


def starts(running, done, window):
    taken = done | {i for i, left in running if left}
    free = [i for i in range(window) if i not in taken]
    idle = [d for d, (_, left) in enumerate(running) if not left]
    for count in range(min(len(idle), len(free)) + 1):
        for chosen in itertools.combinations(idle, count):
            for order in itertools.permutations(free, count):
                yield running, dict(zip(chosen, order, strict=True))


def advance(start, done, times):
    running, new = start
    done, moved = set(done), []
    for d, (index, left) in enumerate(running):
        i, rest = (new[d], times[d]) if d in new else (index, left)
        if rest == 1:
            done.add(i)
        moved.append((i, rest - 1) if rest > 1 else (-1, 0))
    gain = 0
    while gain in done:
        gain += 1
    shifted = tuple((i - gain, left) if left else (-1, 0) for i, left in moved)
    return (shifted, frozenset(i - gain for i in done if i >= gain)), gain


def test_rate_of_the_papers_devices():
    assert theory.total_rate(PAPER) == pytest.approx(5.536, abs=5e-4)


@pytest.mark.parametrize(
    ("tasks", "greedy", "lockstep"), [(100, 2.083, 68.760), (1000, 1.054, 70.180)]
)
def test_table_of_the_design(tasks, greedy, lockstep):
    best = theory.optimum_makespan(THREE, tasks)
    assert theory.greedy_makespan(THREE, tasks) / best == pytest.approx(greedy, abs=5e-4)
    assert theory.lockstep_makespan(THREE, tasks) / best == pytest.approx(lockstep, abs=5e-3)


@given(ticks, st.integers(1, 200))
def test_optimum_is_the_least_time_that_is_enough(times, tasks):
    best = theory.optimum_makespan(times, tasks)
    assert sum(best // t for t in times) >= tasks
    assert sum((best - 1) // t for t in times) < tasks


@given(devices, st.integers(0, 300))
def test_optimum_for_any_floats(times, tasks):
    ends = sorted(k * t for t in times for k in range(1, tasks + 1))
    best = theory.optimum_makespan(times, tasks)
    assert best == (ends[tasks - 1] if tasks else 0.0)
    shares = theory.optimum_shares(times, tasks)
    assert sum(shares) == tasks


def test_optimum_of_a_million_tasks_on_many_devices():
    times = [0.001 * (1 + i) for i in range(500)]
    best = theory.optimum_makespan(times, 10**6)
    assert best == pytest.approx(10**6 / theory.total_rate(times), rel=1e-3)


@given(devices, st.integers(0, 200))
def test_greedy_is_the_plain_pull(times, tasks):
    assert theory.greedy_makespan(times, tasks) == pytest.approx(pull(times, tasks))


@given(devices, st.integers(1, 200))
def test_order_of_the_schedules(times, tasks):
    best = theory.optimum_makespan(times, tasks)
    greedy = theory.greedy_makespan(times, tasks)
    split = theory.static_makespan(times, tasks)
    rounds = theory.lockstep_makespan(times, tasks)
    paper = theory.paper_makespan(times, tasks)
    slack = 1 + 1e-9
    assert tasks / theory.total_rate(times) <= best * slack
    assert best <= greedy * slack
    assert greedy <= (best + max(times)) * slack
    assert best <= split * slack
    assert split <= paper * slack
    assert split <= rounds * slack
    assert rounds <= paper * slack


@given(devices)
def test_window_needed_lets_all_devices_run(times):
    needed = theory.window_needed(times)
    assert theory.windowed_rate(times, needed) == pytest.approx(theory.total_rate(times))
    assert needed >= max(times) * theory.total_rate(times) * (1 - 1e-9)
    assert theory.windowed_makespan(times, 500, needed) == pytest.approx(
        theory.optimum_makespan(times, 500)
    )


def test_window_needed_is_not_fooled_by_floats():
    assert theory.window_needed(THREE) == 211
    assert theory.window_needed([0.1, 0.3]) == 4


@given(devices, st.integers(1, 300))
def test_windowed_rate_lies_between_the_fastest_device_and_all(times, window):
    rate = theory.windowed_rate(times, window)
    assert 1 / min(times) * (1 - 1e-12) <= rate <= theory.total_rate(times) * (1 + 1e-12)
    assert rate <= theory.windowed_rate(times, window, hold=True)
    assert rate <= theory.windowed_rate(times, window + 1)


CASES = [
    ([1, 4], 1),
    ([1, 4], 2),
    ([1, 5], 3),
    ([2, 3], 1),
    ([2, 5], 2),
    ([3, 5], 2),
    ([1, 2, 6], 3),
    ([2, 3, 4], 2),
    ([1, 6], 3),
]


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize(("times", "window"), CASES)
def test_no_schedule_at_all_beats_the_windowed_rate(times, window, hold):
    limit = theory.windowed_rate(times, window, hold=hold)
    assert best_rate(times, window, hold=hold) <= limit + 0.02


@pytest.mark.parametrize(
    ("times", "window", "hold"),
    [
        ([1, 5], 4, True),
        ([1, 4], 3, True),
        ([2, 3], 2, True),
        ([1, 5], 6, False),
        ([2, 4], 2, False),
    ],
)
def test_some_schedule_reaches_it(times, window, hold):
    limit = theory.windowed_rate(times, window, hold=hold)
    assert best_rate(times, window, hold=hold) == pytest.approx(limit, abs=0.02)


def test_speedups():
    assert theory.speedup(PAPER) == pytest.approx(6.09, abs=5e-3)
    assert theory.paper_speedup(PAPER) == pytest.approx(11.07, abs=5e-3)
    assert theory.speedup([2.0, 2.0]) == theory.paper_speedup([2.0, 2.0]) == 2.0


def test_response_time_of_one_exponential_server():
    # M/M/1: 1/(mu - lambda)
    assert theory.response_time([0.5], 1.5, noise_scv=1.0) == pytest.approx(2.0)


def test_response_time_of_two_exponential_servers():
    # M/M/2: S/(1 - rho^2)
    assert theory.response_time([1.0, 1.0], 1.2, noise_scv=1.0) == pytest.approx(1 / (1 - 0.36))


def test_response_time_of_one_constant_server():
    # M/D/1, Pollaczek-Khinchine: S + rho*S/(2(1 - rho))
    assert theory.response_time([1.0], 0.8) == pytest.approx(1 + 0.8 / 0.4)


def test_response_time_of_unequal_servers_against_a_simulation():
    times, rng = [1.0, 2.0, 4.0], random.Random(42)
    arrival_rate, clock, total, count = 1.5, 0.0, 0.0, 60_000
    free = [0.0] * len(times)
    for _ in range(count):
        clock += rng.expovariate(arrival_rate)
        # first come, first served; of several idle servers any one
        idle = [i for i, at in enumerate(free) if at <= clock]
        i = rng.choice(idle) if idle else min(range(len(free)), key=free.__getitem__)
        free[i] = max(clock, free[i]) + times[i]
        total += free[i] - clock
    assert theory.response_time(times, arrival_rate) == pytest.approx(total / count, rel=0.15)


def test_response_time_ends():
    assert theory.response_time(THREE, 0.0) == pytest.approx(theory.expected_latency(THREE))
    assert math.isinf(theory.response_time(THREE, 211.0))


@pytest.mark.parametrize("times", [[], [0.0], [-1.0], [math.nan], [math.inf]])
def test_bad_service_times(times):
    with pytest.raises(ValueError, match="service time"):
        theory.total_rate(times)


def test_bad_figures():
    with pytest.raises(ValueError, match="tasks must not be negative"):
        theory.optimum_makespan(THREE, -1)
    with pytest.raises(ValueError, match="window must be at least 1"):
        theory.windowed_rate(THREE, 0)
    with pytest.raises(ValueError, match="rate must not be negative"):
        theory.response_time(THREE, -1.0)
