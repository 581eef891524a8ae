"""Failed tasks run in the order of their stream, on the device that is done with them first."""

from __future__ import annotations

import asyncio

import pytest
from fakes import Noting, now
from test_trust import Failing

from asyncinfer import Dispatcher
from asyncinfer.testing import SimulatedDriver


async def longest_wait(drivers, tasks):
    """The longest time between two results of an ordered stream, in seconds."""
    longest, last = 0.0, now()
    async with Dispatcher(drivers) as d:
        async for _ in d.stream(range(tasks)):
            longest, last = max(longest, now() - last), now()
    return longest


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("batch", [8, 32])
def test_the_head_does_not_wait_for_what_failed_behind_it(virtual, batch, share):
    options = {"batch_cost": 0.01, "max_batch": batch, "concurrency": 8}
    flaky = Failing("bad", 0.001, share, **options)
    drivers = [SimulatedDriver(name, 0.01) for name in "ab"]
    assert virtual(longest_wait([*drivers, flaky], 1500)) < 0.1


class LaterOnesFailFirst(SimulatedDriver):
    async def infer(self, batch):
        await asyncio.sleep(0.01 * (10 - batch[0]))
        return [ValueError("defect")]


def test_what_came_together_is_run_again_in_its_order(virtual):
    async def run():
        good = Noting("good", 0.2, estimate=1.0)
        bad = LaterOnesFailFirst("bad", 0.01, concurrency=8)
        async with Dispatcher([good, bad], policy="greedy") as d:
            assert [y async for y in d.stream(range(8))] == list(range(8))
        return [x for batch in good.batches for x in batch]

    ran = virtual(run())
    assert len(ran) == 8
    assert ran[1:] == sorted(ran[1:])


class FailsOne(SimulatedDriver):
    async def infer(self, batch):
        await super().infer(batch)
        return [ValueError("defect") if x == 2 else x for x in batch]


@pytest.mark.parametrize("slow", [0.2, 1.0, 30.0])
def test_a_slow_device_that_is_free_leaves_it_to_a_quick_one(virtual, slow):
    """The quick one is busy when the task fails, and yet will have done it before."""
    drivers = [FailsOne("bad", 0.008), SimulatedDriver("a", 0.01), SimulatedDriver("slow", slow)]
    assert virtual(longest_wait(drivers, 18)) < 0.05


def test_but_not_if_the_quick_one_falls_silent(virtual):
    class Hangs(SimulatedDriver):
        async def infer(self, batch):
            await (super().infer(batch) if batch[0] < 3 else asyncio.sleep(1e6))
            return batch

    drivers = [FailsOne("bad", 0.004), Hangs("a", 0.01), SimulatedDriver("slow", 0.2)]
    assert virtual(longest_wait(drivers, 30)) < 1.0


def test_calls_do_not_wait_for_all_that_failed_in_a_stream(virtual):
    class FailsStreams(Failing):
        async def work(self, batch):
            outputs = await super().work(batch)
            return [x if x < 0 else y for x, y in zip(batch, outputs, strict=True)]

    async def run():
        bad = FailsStreams("bad", 0.0005, 0.2, batch_cost=0.002, max_batch=32)
        longest = 0.0
        async with Dispatcher([SimulatedDriver("good", 0.01), bad]) as d:

            async def read():
                return [y async for y in d.stream(range(2000))]

            reading = asyncio.create_task(read())
            while not reading.done():
                begun = now()
                assert await d.infer(-1) == -1
                longest = max(longest, now() - begun)
                await asyncio.sleep(0.01)
            assert await reading == list(range(2000))
        return longest

    assert virtual(run()) < 0.06
