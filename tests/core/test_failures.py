"""What becomes of a task when a device or a model fails: tried again elsewhere, or failed alone."""

from __future__ import annotations

import asyncio
import math
import pickle

import pytest
from fakes import Faulty, Noting, Unusual

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import (
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    InputError,
    NoDeviceError,
    ProtocolError,
    TaskError,
)
from asyncinfer.testing import SimulatedDriver


async def one(drivers, **options):
    """The result of one task, as a record."""
    async with Dispatcher(drivers, **options) as d:
        return await anext(d.results(["x"]))


DEVICE_FAULTS = [
    (DeviceLost("a", "unplugged"), DeviceLost, "unplugged"),
    (ProtocolError("a", "bad checksum"), ProtocolError, "bad checksum"),
    (ConnectionResetError("by peer"), DeviceLost, "ConnectionResetError: by peer"),
    (EOFError("end"), DeviceLost, "EOFError: end"),
    (asyncio.CancelledError(), DeviceLost, "cancelled its own call"),
    (Unusual("odd"), DeviceLost, "Unusual: odd"),
    (lambda xs: None, ProtocolError, "returned no outputs for 1 inputs"),
    (lambda xs: [], ProtocolError, "returned 0 outputs for 1 inputs"),
    (lambda xs: [*xs, 1], ProtocolError, "returned 2 outputs for 1 inputs"),
]


@pytest.mark.parametrize(("fault", "kind", "text"), DEVICE_FAULTS)
def test_a_fault_of_the_device_moves_its_task_and_reopens_it(virtual, fault, kind, text):
    async def run():
        events = []
        a, b = Faulty("a", 0.1, [fault]), Faulty("b", 0.2)
        async with Dispatcher([a, b], on_event=events.append) as d:
            result = await anext(d.results(["x"]))
            await asyncio.sleep(1)
            assert await d.infer("y") == "y"
        assert (result.value, result.device, result.attempts) == ("x", "b", 2)
        assert a.opens == 2
        assert a.batches == [["x"], ["y"]], "it has rejoined"
        lost = [e for e in events if e.kind == "device.lost"]
        assert [(e.device, type(e.error)) for e in lost] == [("a", kind)]
        assert text in str(lost[0].error)

    virtual(run())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_driver_ends_the_program(virtual, interrupt):
    with pytest.raises(interrupt):
        virtual(one([Faulty("a", 0.1, [interrupt()])]))


@pytest.mark.parametrize("fault", [ValueError("no"), lambda xs: [ValueError("no")]])
def test_a_model_that_raises_is_tried_on_another_device_which_stays_open(virtual, fault):
    a, b = Faulty("a", 0.1, [fault]), Faulty("b", 0.2)
    result = virtual(one([a, b]))
    assert (result.value, result.device, result.attempts) == ("x", "b", 2)
    assert a.opens == a.closes == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_task_that_always_fails_fails_alone_with_every_cause(virtual, retries):
    async def run():
        def fail(x):
            return ValueError(f"bad {x}") if x == 5 else None

        drivers = [SimulatedDriver("a", 0.1, fail=fail), SimulatedDriver("b", 0.1, fail=fail)]
        async with Dispatcher(drivers, retries=retries) as d:
            return [y async for y in d.stream(range(10), return_exceptions=True)], d.stats()

    got, stats = virtual(run())
    error = got[5]
    assert [y for y in got if y is not error] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert type(error) is TaskError
    assert (error.index, error.attempts) == (5, retries + 1)
    assert [str(cause) for cause in error.causes] == ["bad 5"] * (retries + 1)
    assert len(error.devices) == retries + 1
    assert len(set(error.devices)) == min(2, retries + 1), "both were tried"
    assert error.__cause__ is error.causes[-1]
    times = "1 attempt" if retries == 0 else f"{retries + 1} attempts"
    where = error.devices[-1]
    assert str(error) == f"task 5 failed after {times}: on {where!r}: ValueError: bad 5"
    assert (stats.failed, stats.retried, stats.finished) == (1, retries, 10)


@pytest.mark.parametrize("fault", [InputError("shape (3,)"), lambda xs: [InputError("shape (3,)")]])
def test_a_wrong_input_is_not_tried_again(virtual, fault):
    result = virtual(one([Faulty("a", 0.1, [fault])]))
    assert result.error.attempts == 1
    assert str(result.error) == "task 0 failed after 1 attempt: on 'a': shape (3,)"


def test_devices_that_fail_a_task_count_as_its_attempts(virtual):
    """A task that kills every device is given up, and the devices come back."""

    async def run():
        drivers = [SimulatedDriver(n, 0.1, fail=lambda x: x == "killer") for n in "abc"]
        async with Dispatcher(drivers, retries=2) as d:
            results = [r async for r in d.results(["killer", *range(20)])]
            return results, d.stats()

    results, stats = virtual(run())
    error = results[0].error
    assert [type(cause) for cause in error.causes] == [DeviceLost] * 3
    assert sorted(error.devices) == ["a", "b", "c"]
    assert [r.value for r in results[1:]] == list(range(20))
    assert sum(device.tasks for device in stats.devices) == 20


def test_tasks_behind_a_lost_device_go_first_and_in_order(virtual):
    async def run():
        fast = Faulty("fast", 0.01, [None] * 10 + [DeviceLost("fast")])
        async with Dispatcher([fast, SimulatedDriver("slow", 0.5)]) as d:
            results = [r async for r in d.results(range(200))]
            assert [r.value for r in results] == list(range(200))
            assert [r.index for r in results if r.attempts == 2] == [10]
            assert all(r.device == "fast" for r in results[12:20])

    virtual(run())


@pytest.mark.parametrize("estimate", [0.2, math.nan])
def test_a_retry_waits_for_no_device_that_is_stuck(virtual, estimate):
    """It would go to a device that has not failed it, if that one ever answered."""

    async def run():
        stuck = SimulatedDriver("stuck", 1e5, estimate=estimate)
        a = Faulty("a", 0.1, [None, ValueError("once")])
        async with Dispatcher([a, stuck], policy="greedy") as d:
            results = d.results(range(50), ordered=False)
            got = [await anext(results) for _ in range(49)]
            assert asyncio.get_running_loop().time() < 20
            await results.aclose()
            return [r.index for r in got if r.attempts == 2]

    assert len(virtual(run())) == 1


def test_no_device_left(virtual):
    async def run():
        a = SimulatedDriver("a", 0.1, fail=lambda x: True)
        async with Dispatcher([a], timeout=3.0, retries=100) as d:
            a.open = never
            with pytest.raises(NoDeviceError) as caught:
                await d.infer("x")
            assert asyncio.get_running_loop().time() == pytest.approx(3.0)
            waiting = asyncio.create_task(d.infer("y"))
            await asyncio.sleep(1)
            await d.add(SimulatedDriver("b", 0.1))
            assert await waiting == "y"
        return caught.value

    async def never():
        raise DeviceLost("a", "gone for good")

    error = virtual(run())
    assert isinstance(error, DeadlineExceeded)
    assert "no device is up after 3.0 s; there are a (backing_off)" in str(error)
    assert "simulated" in str(error), "the last cause"


def test_a_hung_call_is_ended_by_the_run_timeout(virtual):
    async def run():
        hung = Faulty("hung", 0.1)
        hung.side_effects = True  # else a copy would be sooner
        async with Dispatcher([hung, SimulatedDriver("b", 0.2)], timeout=Timeouts(run=2.0)) as d:
            hung.service_time = 1e5
            result = await anext(d.results(["x"]))
            assert (result.value, result.device, result.attempts) == ("x", "b", 2)
            assert asyncio.get_running_loop().time() == pytest.approx(2.2)
            hung.service_time = 0.1
            await asyncio.sleep(1)
            assert d.stats().devices[0].state == "ready"
            assert hung.opens == 2

    virtual(run())


def test_a_hung_only_device_fails_the_task_with_timeouts(virtual):
    result = virtual(one([SimulatedDriver("a", 1e5)], timeout=Timeouts(run=2.0), retries=1))
    assert [type(cause) for cause in result.error.causes] == [DeviceTimeout] * 2
    assert "a call took longer than the run timeout of 2.0 s" in str(result.error)


@pytest.mark.parametrize("concurrency", [2, 4])
def test_all_calls_of_a_lost_device_move(virtual, concurrency):
    async def run():
        a = Faulty("a", 0.1, [None, DeviceLost("a")], concurrency=concurrency)
        async with Dispatcher([a, SimulatedDriver("b", 0.4)]) as d:
            return [y async for y in d.stream(range(100))]

    assert virtual(run()) == list(range(100))


def test_errors_keep_no_batch_alive_and_pickle(virtual):
    result = virtual(one([Faulty("a", 0.1, [ValueError("no")] * 3)]))
    again = pickle.loads(pickle.dumps(result.error))  # noqa: S301  our own bytes
    assert str(again) == str(result.error)
    assert again.devices == result.error.devices == ("a", "a", "a")
    assert str(pickle.loads(pickle.dumps(DeviceError("a", "x")))) == "device 'a': x"  # noqa: S301


class Misconfigured(Noting):
    """Refuses whatever it is asked, as a whole batch or each task in its place."""

    in_place = False

    async def work(self, batch):
        await super().work(batch)
        error = ConfigError(f"{self.name}: set up wrongly")
        if self.in_place:
            return [error] * len(batch)
        raise error


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_device_that_is_set_up_wrongly_costs_no_task_an_attempt(virtual, retries, in_place):
    async def run():
        wrong, good = Misconfigured("wrong", 0.01, max_batch=4), Noting("good", 0.1)
        wrong.in_place = in_place
        async with Dispatcher([wrong, good], retries=retries) as d:
            results = [result async for result in d.results(range(20))]
        assert [result.value for result in results] == list(range(20))
        assert {(result.device, result.attempts) for result in results} == {("good", 1)}
        assert len(wrong.batches) > 0
        assert wrong.opens == 1

    virtual(run())


@pytest.mark.parametrize("devices", [1, 3])
def test_what_no_device_is_set_up_for_is_not_tried_again(virtual, devices):
    async def run():
        drivers = [Misconfigured(f"d{n}", 0.1, max_batch=4) for n in range(devices)]
        async with Dispatcher(drivers, retries=5) as d:
            errors = [y async for y in d.stream(range(8), return_exceptions=True)]
        for error in errors:
            assert isinstance(error, TaskError)
            assert error.attempts == 1
            assert sorted(error.devices) == [f"d{n}" for n in range(devices)]
            assert "set up wrongly" in str(error)
        assert sum(len(batch) for driver in drivers for batch in driver.batches) == 8 * devices

    virtual(run())


def test_a_wrong_device_is_not_asked_for_ever_while_the_right_one_is_away(virtual):
    async def run():
        wrong, away = Misconfigured("wrong", 0.1), Faulty("away", 0.1, [DeviceLost("away")] * 9)
        async with Dispatcher([wrong, away], retries=1) as d:
            with pytest.raises(TaskError) as caught:
                await d.infer(1)
        assert caught.value.attempts == 2
        assert len(wrong.batches) <= 3

    virtual(run())
