"""What one device calls a bad input, and another one computes, is the fault of the first."""

from __future__ import annotations

import asyncio

import pytest
from fakes import Noting
from test_trust import good, job

from asyncinfer import Dispatcher
from asyncinfer._core.devices.record import CONFIRMED, LOOK_AGAIN
from asyncinfer.errors import DeviceLost, InputError, TaskError
from asyncinfer.testing import SimulatedDriver


class Refusing(Noting):
    """From its n-th call on it calls inputs bad that ``bad`` says are: all, if nothing is said."""

    def __init__(self, name, service_time, after=0, bad=None, how="place", **options):
        super().__init__(name, service_time, **options)
        self.after, self.bad, self.how = after, bad or (lambda x: True), how

    async def work(self, batch):
        refused = [len(self.batches) > self.after and self.bad(x) for x in batch]
        if any(refused) and self.how == "raises":
            raise InputError("shape")
        if not all(refused):
            await super().work(batch)
        return [InputError("shape") if no else x for no, x in zip(refused, batch, strict=True)]


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize(("how", "batch"), [("place", 1), ("place", 32), ("raises", 32)])
def test_a_device_that_refuses_everything_costs_no_task(virtual, how, batch, after, retries):
    alone = virtual(job([good()]))[0]
    bad = Refusing("bad", 0.001, after, how=how, batch_cost=0.001, max_batch=batch)
    seconds, lost, stats, _ = virtual(job([good(), bad], retries=retries))
    assert lost == 0
    assert seconds <= 1.05 * alone
    assert stats.devices[1].state == "distrusted"


def one_in_ten(x):
    return x % 10 == 3


def test_bad_inputs_are_looked_at_elsewhere_until_a_device_is_believed(virtual):
    drivers = [Refusing(n, 0.01, bad=one_in_ten) for n in "abc"]
    seconds, lost, stats, _ = virtual(job(drivers, 3000))
    assert lost == 300
    assert {device.state for device in stats.devices} == {"ready"}
    ran = sum(len(driver.batches) for driver in drivers) - 3000
    assert ran == stats.retried
    assert ran <= 300 / LOOK_AGAIN + 3 * (CONFIRMED + 3)
    assert seconds < 10.1


def test_a_bad_input_fails_after_one_look_elsewhere(virtual):
    drivers = [Refusing(n, 0.01, bad=lambda x: x == 3) for n in "abc"]

    async def run():
        async with Dispatcher(drivers) as d:
            return [r async for r in d.results(range(6))]

    error = virtual(run())[3].error
    assert type(error) is TaskError
    assert [type(cause) for cause in error.causes] == [InputError] * 2
    assert len(set(error.devices)) == 2
    assert error.attempts == 1, "the look is none"


def test_where_another_device_fails_it_differently_it_is_bad_as_well(virtual):
    def raises(x):
        return ValueError("shape") if x == 0 else None

    async def run():
        drivers = [
            Refusing("a", 0.01, bad=lambda x: x == 0),
            SimulatedDriver("b", 0.1, fail=raises),
        ]
        async with Dispatcher(drivers) as d:
            return [r async for r in d.results(range(20))]

    error = virtual(run())[0].error
    assert [type(cause) for cause in error.causes] == [InputError, ValueError]


def test_a_look_that_costs_a_device_is_made_once_more(virtual):
    async def run():
        gone = SimulatedDriver("b", 0.1, fail=lambda x: x == 0)
        async with Dispatcher([Refusing("a", 0.01, bad=lambda x: x == 0), gone]) as d:
            return [r async for r in d.results(range(20))]

    error = virtual(run())[0].error
    kinds = [type(cause) for cause in error.causes]
    assert kinds[:2] == [InputError, DeviceLost]
    assert len(kinds) <= 4


def test_a_device_alone_is_believed(virtual):
    device = Refusing("a", 0.01, bad=one_in_ten)
    _, lost, stats, _ = virtual(job([device], 100))
    assert (lost, stats.retried, len(device.batches)) == (10, 0, 100)


def test_one_that_was_believed_and_breaks_is_found_out(virtual):
    """One task is lost by it, and those that it is believed before the next look."""
    breaks = Refusing("bad", 0.01, bad=lambda x: one_in_ten(x) or x > 1000)
    honest = Refusing("good", 0.01, bad=one_in_ten)
    _, lost, stats, _ = virtual(job([breaks, honest], 2000))
    assert 200 <= lost <= 201
    assert stats.devices[0].state == "distrusted"


def test_one_that_refuses_what_others_do_now_and_then_is_not_believed(virtual):
    odd = Refusing("odd", 0.01, bad=lambda x: one_in_ten(x) or (x > 500 and x * 71 % 100 < 8))
    honest = Refusing("good", 0.01, bad=one_in_ten)
    _, lost, stats, _ = virtual(job([odd, honest], 3000))
    assert lost - 300 <= 2 * LOOK_AGAIN
    assert stats.devices[0].faults > 50


def test_where_all_inputs_are_bad_no_device_is_distrusted(virtual):
    drivers = [Refusing(n, 0.01) for n in "abc"]
    _, lost, stats, _ = virtual(job(drivers, 100))
    assert lost == 100
    assert {device.state for device in stats.devices} == {"ready"}


def test_calls_of_infer_are_looked_at_elsewhere_too(virtual):
    async def run():
        async with Dispatcher([Refusing("bad", 0.01), SimulatedDriver("good", 0.1)]) as d:
            assert await asyncio.gather(*map(d.infer, range(20))) == list(range(20))

    virtual(run())
