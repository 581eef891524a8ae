"""Devices that share something and were not calibrated, as most drivers of one's own are not."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from fakes import Cold

from asyncinfer import Dispatcher
from asyncinfer.scheduling.sharing import Group
from asyncinfer.scheduling.slowdown import Member, Model
from asyncinfer.testing import SimulatedHost


async def rate(tasks, cores, contention, *devices, cold=0.0):
    """Tasks a second in the second half; and which devices rest at the end."""
    host = SimulatedHost(cores, contention, name="host")
    drivers = [
        Cold(f"d{at}", each, cold * at, once=once, max_batch=batch, host=host, cores=demand)
        for at, (demand, each, batch, once) in enumerate(devices)
    ]
    clock, number, half = asyncio.get_running_loop().time, 0, 0.0
    async with Dispatcher(drivers) as dispatcher:
        async for value in dispatcher.stream(range(tasks)):
            assert value == number
            number += 1
            if number == tasks // 2:
                half = clock()
        rests = [device.rests is not None for device in dispatcher.stats().devices]
        return (tasks - tasks // 2) / (clock() - half), rests


#: what a call wants of the host, seconds a task, ``max_batch``, seconds a call
SMALL, QUICK = (1.86, 0.0006, 8, 0.001), (0.11, 0.0001, 32, 0.001)


@pytest.mark.parametrize("cold", [0.0, 10.0])
def test_a_device_that_nothing_is_known_of_is_tried_beside_a_quick_one(virtual, cold):
    """It was presumed to take a second for a task, so that it was never worth a trial."""
    alone, _ = virtual(rate(8000, 3, 0.2, QUICK))
    together, _ = virtual(rate(60_000, 3, 0.2, SMALL, QUICK, cold=cold))
    assert together > 0.93 * alone


def test_one_that_was_slow_only_beside_another_is_tried_by_itself(virtual):
    """It ran beside another from the first, and was taken to be as slow by itself."""
    hungry, better = (1.49, 0.0131, 8, 0.026), (1.23, 0.0054, 8, 0.011)
    alone, _ = virtual(rate(2000, 1, 0.0, better))
    together, rests = virtual(rate(6000, 1, 0.0, hungry, better))
    assert together > 0.97 * alone
    assert rests == [True, False]


def test_a_first_call_that_was_slow_as_everything_was_cold_does_not_count(virtual):
    devices = (1.97, 0.0037, 1, 0.0), (0.96, 0.0032, 1, 0.0)
    alone, _ = virtual(rate(2000, 1, 0.2, devices[1]))
    together, rests = virtual(rate(20_000, 1, 0.2, *devices, cold=10.0))
    assert together > 0.97 * alone
    assert rests == [True, False]


def test_what_is_presumed_of_a_device_that_nothing_is_known_of():
    model = Model([Member(0.004, 1, 1.0), Member(float("nan"), 1, 1.0), Member(0.002, 1, 1.0)])
    model.fit({}, 0.1, random.Random(42))
    assert model.alone == [0.004, 0.002, 0.002]


class Growing(Cold):
    """It finds out in one of its calls that it can take 64 tasks in each."""

    after = 0

    async def infer(self, batch):
        outputs = await super().infer(batch)
        if self.calls == self.after:
            self.max_batch = 64
        return outputs


@pytest.mark.parametrize("after", [20, 53])
def test_batches_that_grow_as_a_device_begins_to_rest_have_it_tried_again(virtual, after):
    """It was taken to be as slow with 64 tasks in a call as with one, and rested for long."""

    async def main():
        host = SimulatedHost(1.0, name="host")
        single = Cold("single", 0.001, host=host, cores=0.9)
        growing = Growing("growing", 0.00001, once=0.0015, host=host, cores=0.9)
        growing.after = after
        async with Dispatcher([single, growing]) as dispatcher:
            began, count = asyncio.get_running_loop().time(), 0
            async for _ in dispatcher.stream(range(200_000)):
                count += 1
                if asyncio.get_running_loop().time() > began + 0.6:
                    break
            return [device.rests is not None for device in dispatcher.stats().devices]

    assert virtual(main()) == [True, False]


def test_what_the_event_loop_costs_between_two_calls_counts(virtual, monkeypatch):
    """A device got its next call later, as the loop was busy with what its last one brought."""
    told = []

    def end(self, place, begun, seconds, now):
        told.append(round(seconds, 4))

    monkeypatch.setattr(Group, "end", end)

    class Dear(Cold):
        async def infer(self, batch):
            outputs = await super().infer(batch)
            loop = asyncio.get_running_loop()
            loop.call_soon(setattr, loop._jumping, "now", loop.time() + 0.03)
            return outputs

    async def main():
        dear = Dear("dear", 0.05, host=SimulatedHost(4.0, name="host"), cores=0.5)
        async with Dispatcher([dear, Cold("other", 1.0, host=dear.host, cores=0.5)]) as dispatcher:
            assert [x async for x in dispatcher.stream(range(50))] == list(range(50))

    virtual(main())
    assert told[5:-5] == pytest.approx([0.08] * len(told[5:-5]), abs=0.001)


def test_trials_of_resting_devices_do_not_put_off_all_looks_for_a_better_set(virtual):
    """They came every 0.3 s, and each of them put off the next look by a second."""
    each = [(0.56, 0.0121), (1.27, 0.102), (0.83, 0.0033), (1.81, 0.0025), (1.99, 0.0414)]
    devices = [(demand, seconds, 1, 0.0) for demand, seconds in [*each, (1.12, 0.0023)]]
    together, _ = virtual(rate(6000, 2, 0.134, *devices))
    host = SimulatedHost(2, 0.134)
    best = (1 / 0.0033 + 1 / 0.0023) * host.speed([0.83, 1.12])
    assert together > 0.9 * best


class Together:
    """A group that is told what its devices do, one call after the other."""

    def __init__(self, *members):
        self.group, self.now = Group("42"), 0.0
        for alone, batch in members:
            self.group.add(Member(alone, 1, batch))
        self.group.offer((1 << len(members)) - 1, 0.0)

    def call(self, place, seconds):
        """A call of the chosen devices that takes so many seconds a task."""
        self.group.run(self.group.chosen)
        begun = self.group.begin(place)
        self.now += seconds
        if begun is not None:
            self.group.end(place, begun, seconds, self.now)


def test_trials_of_resting_devices_do_not_put_off_the_next_look():
    """They came every 0.3 s, and each of them put off the look for a better set by a second."""
    together = Together((0.01, 1), (0.011, 1))
    group = together.group
    for _ in range(5):
        together.call(0, 0.01)
    group._choose(together.now)
    group._take(1, together.now)
    group._look_at = together.now + 0.5
    due = group._look_at
    for _ in range(4):
        group._probe(together.now)
        assert group.chosen == 0b11
        together.now += 0.1
        group._end_probe(together.now)
        assert group.chosen == 0b01
    assert group._look_at == due


def test_a_device_seen_only_in_calls_that_do_not_count_is_not_presumed_to_be_quick():
    together = Together((0.001, 1), (math.nan, 4))
    group = together.group
    for _ in range(5):
        together.call(0, 0.001)
    assert group.model.alone[1] == pytest.approx(0.001)
    group.glimpse(1, 0.5 / 4)  # a call with one task took 0.5 s
    group.replace(1, Member(0.001, 1, 4))
    group._fit()
    assert group.model.alone[1] == pytest.approx(0.125 / group._running.bit_count())
    group._forget(together.now)
    assert math.isnan(group.model.members[1].alone), "nothing has shown how quick it is"


def test_a_set_is_not_left_while_a_slow_call_from_before_holds_up_the_stream():
    """Until that ends the window is full, and the set has nothing to do. It was avoided then."""
    together = Together((0.001, 1), (0.3, 1))
    group = together.group
    for _ in range(5):
        together.call(0, 0.001)
    group._take(0b01, together.now)
    began = together.now
    group.run(0b10)
    while together.now < began + 0.4:
        together.now += 0.01
        group._wait_no_longer(together.now)
    assert not group._avoided
    for _ in range(5):
        together.call(0, 0.001)
    assert not group._avoided
