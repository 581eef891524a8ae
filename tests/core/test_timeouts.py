"""Each time limit by its name: its own error, at its time, and the rest goes on."""

from __future__ import annotations

import asyncio
import gc
import math

import inside
import pytest
from fakes import Picky, now

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import ConfigError, DeadlineExceeded, NoDeviceError, QueueTimeout, TaskError
from asyncinfer.testing import SimulatedDriver


async def ends(d, count):
    """When each of ``count`` calls made now ends, and with what."""

    async def call(x):
        try:
            end = await d.infer(x)
        except TaskError as error:
            end = type(error)
        return end, now()

    return await asyncio.gather(*(call(x) for x in range(count)))


def test_queue_bounds_the_wait_for_a_device_and_not_the_run(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 2.0)], timeout=Timeouts(queue=3.0)) as d:
            got = await ends(d, 4)
            assert d.stats().devices[0].tasks == 2
            return got

    assert virtual(run()) == [(0, 2.0), (1, 4.0), (QueueTimeout, 3.0), (QueueTimeout, 3.0)]


def test_total_bounds_everything_and_frees_the_device(virtual):
    async def run(timeout):
        async with Dispatcher([SimulatedDriver("a", 2.0)], timeout=timeout) as d:
            got = await ends(d, 4)
            assert await d.infer("next") == "next"
            assert now() == 5.0
            return got

    expected = [(0, 2.0), (DeadlineExceeded, 3.0), (DeadlineExceeded, 3.0), (DeadlineExceeded, 3.0)]
    assert virtual(run(Timeouts(total=3.0))) == expected
    assert virtual(run(3.0)) == expected, "a number is the total"


def test_expired_tasks_never_reach_a_device(virtual):
    async def run():
        seen = []
        driver = SimulatedDriver("a", 1.0, function=seen.append)
        async with Dispatcher([driver], timeout=1.5, window=2, queue_size=50) as d:
            results = [r async for r in d.results(range(20))]
        return seen, results

    seen, results = virtual(run())
    assert seen == [0]
    assert [r.index for r in results] == list(range(20))
    assert [type(r.error) for r in results[1:]] == [DeadlineExceeded] * 19
    assert [r.attempts for r in results[2:]] == [0] * 18
    assert all(r.device == "" for r in results[2:])


def test_an_ordered_stream_goes_on_behind_an_expired_task(virtual):
    async def run():
        slow = SimulatedDriver("slow", 0.1)
        drivers = [SimulatedDriver("a", 0.1), slow]
        async with Dispatcher(drivers, policy="static", timeout=2.0, window=10) as d:
            got = []
            async for result in d.results(range(40)):
                got.append(result)
                slow.service_time = 1e5 if result.index == 4 else 0.1
            return got

    got = virtual(run())
    assert [r.index for r in got] == list(range(40))
    late = [r for r in got if r.error is not None]
    assert late
    assert {type(r.error) for r in late} == {DeadlineExceeded}
    assert all(r.finished - r.submitted == pytest.approx(2.0) for r in late)
    assert all(r.value == r.index for r in got if r.error is None)


def test_the_deadline_of_a_task_counts_its_retries(virtual):
    async def run():
        driver = SimulatedDriver("a", 1.0, fail=lambda x: ValueError("no"))
        async with Dispatcher([driver], timeout=3.5, retries=100) as d:
            with pytest.raises(DeadlineExceeded, match=r"not finished within 3\.5 s") as caught:
                await d.infer(1)
            return caught.value

    error = virtual(run())
    assert error.attempts == len(error.causes) == 3
    assert not isinstance(error, NoDeviceError)


def test_a_task_that_is_tried_again_is_not_in_the_queue_again(virtual):
    """It was started in time: after that the queue timeout has no say."""

    async def run():
        faults = [ValueError("once")]
        fail = lambda x: faults.pop() if faults else None  # noqa: E731
        driver = SimulatedDriver("a", 2.0, fail=fail)
        async with Dispatcher([driver], timeout=Timeouts(queue=1.0)) as d:
            return await ends(d, 1)

    assert virtual(run()) == [(0, 4.0)]


def test_a_batch_that_raised_has_been_started(virtual):
    async def run():
        driver = Picky("a", 1.0, lambda batch: len(batch) > 1, max_batch=4)
        async with Dispatcher([driver], timeout=Timeouts(queue=5.5)) as d:
            return await ends(d, 4)

    assert [end for end, _ in virtual(run())] == [0, 1, 2, 3]


def test_memory_of_deadlines_follows_the_unfinished(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.0)], timeout=1e5, window=50) as d:
            stream = d.stream(range(20_000))
            async for _ in stream:
                pass
            kept = [
                x for x in gc.get_objects() if type(x) is Span and x.lane is inside.lane_of(stream)
            ]
            assert sum(span.count for span in kept) <= 100

    virtual(run())


@pytest.mark.parametrize("name", ["open", "queue", "run", "total", "close", "drain"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_limit_must_be_positive(name, value):
    with pytest.raises(ConfigError, match=f"timeout {name} must be more than 0 seconds"):
        Timeouts(**{name: value})


def test_a_limit_must_be_a_number():
    with pytest.raises(ConfigError, match="timeout total must be"):
        Dispatcher([], timeout="5")


@pytest.mark.parametrize("name", ["open", "queue", "run", "total", "close", "drain"])
async def test_no_limit_may_be_written_as_infinity(name):
    async with Dispatcher([SimulatedDriver("a", 0.0)], timeout=Timeouts(**{name: math.inf})) as d:
        assert await d.infer(1) == 1


async def test_deadlines_on_real_loops():
    timeout = Timeouts(total=0.01)
    async with Dispatcher([SimulatedDriver("a", 1e5)], timeout=timeout, window=2) as d:
        results = [r async for r in d.results(range(10))]
        assert {type(r.error) for r in results} == {DeadlineExceeded}
        with pytest.raises(DeadlineExceeded):
            await d.infer(1)
