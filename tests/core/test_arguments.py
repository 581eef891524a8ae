"""Wrong arguments: each error names the culprit and what to do."""

from __future__ import annotations

import asyncio
import math

import pytest

from asyncinfer import Dispatcher, Driver, Timeouts
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.testing import SimulatedDriver


def a():
    return SimulatedDriver("a", 1.0)


class NoInfer:
    name = "mute"


class NoName:
    async def infer(self, batch):
        return batch


class Minimal:
    """The least a driver can be."""

    name = "least"

    async def infer(self, batch):
        return [x + 1 for x in batch]


def options(**wrong):
    return lambda: Dispatcher([a()], **wrong)


def driver(**attributes):
    made = a()
    vars(made).update(attributes)
    return lambda: Dispatcher([made])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (options(window=0), "window must be a whole number of 1 or more, not 0"),
        (options(window=1.5), "window must be a whole number of 1 or more, not 1.5"),
        (options(queue_size=-1), "queue_size must be a whole number of 1 or more, not -1"),
        (options(queue_size="9"), "queue_size must be a whole number of 1 or more, not '9'"),
        (options(retries=-1), "retries must be a whole number of 0 or more, not -1"),
        (options(hedge=2.0), "hedge must be None"),
        (options(policy="etf"), "unknown policy 'etf': choose one of eft, greedy, static, sync"),
        (options(retries=True), "retries must be a whole number of 0 or more, not True"),
        (options(window=math.nan), "window must be a whole number of 1 or more, not nan"),
        (options(timeout=True), "timeout total must be more than 0 seconds, not True"),
        (options(timeout=math.nan), "timeout total must be more than 0 seconds, not nan"),
        (options(timeout="5"), "timeout total must be more than 0 seconds, not '5'"),
        (lambda: Timeouts(drain=-1), "timeout drain must be more than 0 seconds, not -1"),
        (lambda: Timeouts(close=None), "timeout close must be more than 0 seconds"),
        (options(on_event=5), "on_event must be a function or None, not 5"),
        (options(on_event=asyncio.sleep), "on_event is called, not awaited"),
        (lambda: Dispatcher(a()), "drivers must be a list of drivers, one per device, not <"),
        (lambda: Dispatcher("ab"), "drivers must be a list of drivers, one per device, not 'ab'"),
        (driver(max_batch=True), "device 'a': max_batch must be 1 or more, not True"),
        (driver(max_wait=math.nan), "device 'a': max_wait must be seconds, 0 or more, not nan"),
        (options(timeout=0), "timeout total must be more than 0 seconds, not 0"),
        (lambda: Dispatcher([a(), a()]), "two devices are called 'a': names must differ"),
        (lambda: Dispatcher([NoInfer()]), "device 'mute' is no driver: it has no coroutine method"),
        (lambda: Dispatcher([NoName()]), "is no driver: it needs a name, a non-empty string"),
        (driver(name=""), "is no driver: it needs a name"),
        (driver(max_batch=0), "device 'a': max_batch must be 1 or more, not 0"),
        (driver(concurrency=2.0), "device 'a': concurrency must be 1 or more, not 2.0"),
        (lambda: SimulatedDriver("s", -1), "device 's': service_time must be 0 or more, not -1"),
        (lambda: SimulatedDriver("s", math.inf), "device 's': service_time must be 0 or more"),
        (lambda: SimulatedDriver("s", 1, batch_cost=-1), "device 's': batch_cost must be 0 or"),
    ],
)
def test_what_cannot_be_set_up(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AsyncInferError)


@pytest.mark.parametrize("xs", [5, None, object()])
@pytest.mark.parametrize("method", ["stream", "results"])
async def test_a_source_that_is_none(xs, method):
    async with Dispatcher([a()]) as d:
        with pytest.raises(TypeError, match=f"'{type(xs).__name__}' object is not iterable"):
            getattr(d, method)(xs)


async def test_the_least_a_driver_can_be():
    async with Dispatcher([Minimal()]) as d:
        assert await d.infer(1) == 2
        assert [y async for y in d.stream([1, 2, 3])] == [2, 3, 4]


async def test_a_driver_by_inheritance_needs_infer_only():
    class Inheriting(Driver[int, int]):
        name = "heir"

        async def infer(self, batch):
            return [x + 1 for x in batch]

    async with Dispatcher([Inheriting()]) as d:
        assert await d.infer(1) == 2


@pytest.mark.parametrize("window", [1, 10**6, math.inf])
@pytest.mark.parametrize("queue_size", [1, math.inf])
async def test_any_window_and_queue_will_do(window, queue_size):
    async with Dispatcher([Minimal()], window=window, queue_size=queue_size) as d:
        assert [y async for y in d.stream(range(50))] == list(range(1, 51))


async def test_any_kind_of_source_will_do():
    class Indexed:
        def __getitem__(self, i):
            if i == 3:
                raise IndexError
            return i

    class Async:
        def __aiter__(self):
            async def items():
                for x in range(3):
                    yield x

            return items()

    async with Dispatcher([Minimal()]) as d:
        for xs in (range(3), [0, 1, 2], iter([0, 1, 2]), {0, 1, 2}, Indexed(), Async()):
            assert [y async for y in d.stream(xs)] == [1, 2, 3]
        assert [y async for y in d.stream([])] == []


def test_no_device_is_no_error_until_something_waits_for_one(virtual):
    async def run():
        async with Dispatcher([], timeout=2) as d:
            with pytest.raises(AsyncInferError, match="no device is up after 2 s; there are none"):
                await d.infer(1)
            await d.add(Minimal())
            assert await d.infer(1) == 2

    virtual(run())
