"""A device whose first call is slow, as everything is cold: it is tried again, and costs little."""

from __future__ import annotations

import asyncio

import pytest
from fakes import Cold

from asyncinfer import Dispatcher
from asyncinfer._core.devices.speed import Estimator


async def stream(drivers, tasks, window=1024):
    """Seconds for all tasks, and the longest time without a result."""
    clock = asyncio.get_running_loop().time
    began, longest, results = clock(), 0.0, []
    async with Dispatcher(drivers, window=window) as d:
        before = began
        async for y in d.stream(range(tasks)):
            longest, before = max(longest, clock() - before), clock()
            results.append(y)
        seconds = clock() - began
    assert results == list(range(tasks))
    return seconds, longest


@pytest.mark.parametrize("window", [64, 1024])
@pytest.mark.parametrize("first", [3.0, 20.0])
def test_a_pool_is_no_slower_than_a_quick_device_that_was_cold(virtual, first, window):
    alone, _ = virtual(stream([Cold("quick", 0.005, first)], 4000, window))
    pool = [Cold("steady", 0.05), Cold("quick", 0.005, first)]
    seconds, longest = virtual(stream(pool, 4000, window))
    assert seconds < 1.1 * alone
    assert longest < 0.5


def test_so_it_is_where_calls_come_one_by_one(virtual):
    """Nothing queues behind a window there."""

    async def run():
        quick = Cold("quick", 0.005, 3.0)
        async with Dispatcher([Cold("steady", 0.05), quick]) as d:

            async def client():
                for x in range(2000):
                    assert await d.infer(x) == x

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(client())
        return asyncio.get_running_loop().time(), quick.calls

    seconds, calls = virtual(run())
    assert calls > 6000
    assert seconds < 150  # and 400 with the steady one alone


@pytest.mark.parametrize("slow", [0.5, 2.0, 20.0])
def test_a_device_that_is_slow_indeed_costs_next_to_nothing(virtual, slow):
    alone, _ = virtual(stream([Cold("steady", 0.01)], 5000, 8))
    device = Cold("slow", slow)
    seconds, longest = virtual(stream([Cold("steady", 0.01), device], 5000, 8))
    assert seconds < 1.01 * alone
    assert longest < 0.3
    assert device.calls <= 6


def test_where_tasks_must_not_run_twice_it_is_tried_as_seldom_as_before(virtual):
    slow = Cold("slow", 0.5, effects=True)
    pool = [Cold("steady", 0.01, effects=True), slow]
    virtual(stream(pool, 4000, 8))
    assert slow.calls == 1


def test_one_quicker_call_replaces_the_first_one_of_all_and_no_later_one():
    cold = Estimator()
    cold.learn(1, 20.0)
    cold.learn(1, 0.001)
    assert cold.expect(1) == pytest.approx(0.001)
    for _ in range(8):
        cold.learn(1, 0.01)
    before = cold.expect(1)
    cold.learn(1, 0.0001)
    assert cold.expect(1) > before / 2
