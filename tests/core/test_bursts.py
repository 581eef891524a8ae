"""Tasks that a device had reserved, and answers that come too late."""

from __future__ import annotations

import asyncio

import inside
import pytest
from fakes import Deaf

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import DeviceLost, TaskError
from asyncinfer.testing import SimulatedDriver

QUICK = 0.00002


class Breaking(SimulatedDriver):
    """So quick that it reserves tasks; raises once, at input 1010."""

    def __init__(self, name, error):
        super().__init__(name, QUICK)
        self.error = error

    async def infer(self, batch):
        await super().infer(batch)
        if 1010 in batch and self.error is not None:
            error, self.error = self.error, None
            raise error
        return batch


@pytest.mark.parametrize("error", [ValueError("model"), DeviceLost("a"), BrokenPipeError("gone")])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_burst_that_breaks_off_loses_none_of_what_it_had_reserved(virtual, error, ordered):
    async def run():
        drivers = [Breaking("a", error), Breaking("b", error)]
        most = 0
        async with Dispatcher(drivers) as d:
            got = []
            async for y in d.stream(range(2000), ordered=ordered, return_exceptions=True):
                got.append(y)
                most = max([most, *(burst.reserved for burst in inside.bursts(d))])
        assert most > 1, "or this tests nothing"
        assert not [y for y in got if isinstance(y, TaskError)]
        assert (got if ordered else sorted(got)) == list(range(2000))

    virtual(run())


def test_tasks_given_back_take_their_place_again(virtual):
    """They go before those that were behind them, not to the end of the queue."""

    async def run():
        slow, quick = SimulatedDriver("slow", 50.0), SimulatedDriver("quick", 1.0)
        async with Dispatcher([slow, quick], policy="greedy") as d:
            results = d.results(range(20), ordered=False)
            order = [(await anext(results)).index]
            running = ({0, 1} - set(order)).pop()
            await asyncio.sleep(0.5)
            await d.remove("slow", drain=False)
            order += [(await anext(results)).index for _ in range(19)]
            return running, order

    running, order = virtual(run())
    assert sorted(order) == list(range(20))
    assert order.index(running) == 2, "behind what the other device was running"
    rest = [index for index in order if index != running]
    assert rest == sorted(rest)


def test_an_answer_that_comes_too_late_is_ignored(virtual):
    """Its task has been run elsewhere meanwhile: the late call counts for nothing."""

    async def run():
        late, well = Deaf("late", 0.01, seconds=5.0), SimulatedDriver("well", 1.0)
        late.side_effects = True  # else a copy would be sooner
        async with Dispatcher([late, well], timeout=Timeouts(run=2.0)) as d:
            result = await anext(d.results(["x"]))
            assert (result.value, result.device, result.attempts) == ("x", "well", 2)
            await d.remove("well")
            await asyncio.sleep(20)
            stats = d.stats()
            assert (stats.finished, stats.submitted, stats.failed) == (1, 1, 0)
            assert [(s.name, s.tasks, s.batches) for s in stats.devices] == [("late", 0, 0)]

    virtual(run())
