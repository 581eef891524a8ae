"""Streams take turns: none is passed over, however many others come and go."""

from __future__ import annotations

import asyncio

import pytest
from fakes import now, simulated

from asyncinfer import Dispatcher
from asyncinfer.testing import SimulatedDriver

UNLIKE = [[0.01], [0.01, 0.015], [0.01, 0.03], [0.01, 0.01, 0.05], [0.01, 0.02, 0.04]]


async def shared(times, streams, shorts=0, seconds=5.0):
    """Results of each endless stream, and what each of the short ones beside them took."""
    async with Dispatcher(simulated(times), window=200) as d:
        counts, took = [0] * streams, []

        async def long(at):
            async with d.stream(range(10**9)) as ys:
                async for _ in ys:
                    counts[at] += 1

        async def short():
            while True:
                begun = now()
                assert [y async for y in d.stream(range(2))] == [0, 1]
                took.append(now() - begun)

        tasks = [asyncio.create_task(long(at)) for at in range(streams)]
        tasks += [asyncio.create_task(short()) for _ in range(shorts)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return counts, took


@pytest.mark.parametrize("times", UNLIKE)
@pytest.mark.parametrize("streams", [2, 3, 5, 8])
def test_streams_get_about_the_same(virtual, times, streams):
    counts, _ = virtual(shared(times, streams))
    assert min(counts) > 0.6 * max(counts)


@pytest.mark.parametrize("times", UNLIKE)
@pytest.mark.parametrize(("streams", "shorts"), [(1, 20), (4, 8), (2, 5), (1, 100)])
def test_a_short_stream_waits_for_its_turn_and_no_longer(virtual, times, streams, shorts):
    """Two tasks take two turns, and one is a task of each stream at most."""
    _, took = virtual(shared(times, streams, shorts, seconds=10.0))
    turn = (streams + shorts) / sum(1 / each for each in times)
    assert max(took) < 2 * turn + 2 * max(times)


def test_a_call_beside_many_streams_is_next_but_for_those_before_it(virtual):
    async def run():
        drivers = [SimulatedDriver("fast", 0.01), SimulatedDriver("slow", 0.03)]
        async with Dispatcher(drivers, window=200) as d:

            async def endless():
                async with d.stream(range(10**9)) as ys:
                    async for _ in ys:
                        pass

            streams = [asyncio.create_task(endless()) for _ in range(10)]
            took = []
            for _ in range(50):
                begun = now()
                await d.infer(0)
                took.append(now() - begun)
            for stream in streams:
                stream.cancel()
            await asyncio.wait(streams)
        return max(took)

    assert virtual(run()) < 0.15
