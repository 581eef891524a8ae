"""Each time limit by its name: its own error, at its time, and the rest goes on."""

from __future__ import annotations

import asyncio
import gc
import math

import inside
import pytest
from fakes import Deaf, Doored, Picky, Uneven, now

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import (
    ConfigError,
    DeadlineExceeded,
    DeviceLost,
    NoDeviceError,
    QueueTimeout,
    TaskError,
)
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
        async with Dispatcher([driver], timeout=1.5, window=2, queue_size=5) as d:
            ends_ = await ends(d, 20)
        return seen, ends_

    seen, got = virtual(run())
    assert seen == [0]
    assert got == [(None, 1.0)] + [(DeadlineExceeded, 1.5)] * 19, "waiting for room counts too"


def test_an_ordered_stream_goes_on_behind_an_expired_task(virtual):
    async def run():
        drivers = [SimulatedDriver("a", 0.1), Uneven("slow", 0.1, {9: 1e5})]
        async with Dispatcher(drivers, policy="static", timeout=0.3, window=10) as d:
            return [r async for r in d.results(range(40))]

    got = virtual(run())
    assert [r.index for r in got] == list(range(40))
    late = [r for r in got if r.error is not None]
    assert [(r.index, type(r.error)) for r in late] == [(9, DeadlineExceeded)]
    assert all(r.value == r.index for r in got if r.error is None)


# ---- of a stream


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("room", [{}, {"window": 5}, {"window": 50, "queue_size": 1}])
def test_how_far_a_stream_is_read_ahead_takes_no_task_s_time(virtual, room, ordered):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.05)], timeout=0.5, **room) as d:
            return [r async for r in d.results(range(200), ordered=ordered)]

    assert all(r.error is None for r in virtual(run()))


def test_reading_the_results_slowly_takes_no_task_s_time(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.05)], timeout=0.5, window=4) as d:
            got = []
            async for result in d.results(range(12)):
                got.append(result.value)
                await asyncio.sleep(3.0)
            return got

    assert virtual(run()) == list(range(12))


def test_what_is_reserved_behind_a_call_that_is_late_has_its_whole_time(virtual):
    async def run():
        device = Uneven("a", 1e-5, {2100: 1e5})
        async with Dispatcher([device], timeout=Timeouts(total=1.5, run=None)) as d:
            return [r async for r in d.results(range(4000))]

    got = virtual(run())
    assert [(r.index, type(r.error)) for r in got if r.error] == [(2100, DeadlineExceeded)]


def test_tasks_of_one_call_are_late_together_and_those_behind_are_not(virtual):
    async def run():
        device = Uneven("a", 0.1, {20: 1e5}, max_batch=4)
        async with Dispatcher([device], timeout=Timeouts(total=4.5, run=None)) as d:
            got = [r async for r in d.results(range(40))]
        return next(batch for batch in device.batches if 20 in batch), got

    batch, got = virtual(run())
    assert [r.index for r in got if type(r.error) is DeadlineExceeded] == batch
    assert [r.value for r in got if r.error is None] == [x for x in range(40) if x not in batch]


def test_a_stream_that_is_kept_from_a_device_loses_one_task_at_a_time(virtual):
    async def run():
        device = Deaf("a", 1.0, seconds=20.0, first=2)
        async with Dispatcher([device], timeout=Timeouts(total=3.0, run=None), retries=0) as d:
            await d.infer("short")
            with pytest.raises(DeadlineExceeded):
                await d.infer("long")
            began = now()
            device.first = 1000
            return [(type(r.error), now() - began) async for r in d.results(range(9))]

    got = virtual(run())
    assert got[:5] == [(DeadlineExceeded, pytest.approx(3.0 * n)) for n in range(1, 6)]
    assert [kind for kind, _ in got[5:]] == [type(None)] * 4


def test_without_a_device_all_that_waits_in_the_window_is_told_at_once(virtual):
    class Dies(Doored):
        async def work(self, batch):
            if 1 in batch:
                raise DeviceLost("a")
            return await super().work(batch)

    async def run():
        device = Dies("a", 0.1, openings=[0.0, *[DeviceLost("a")] * 1000])
        async with Dispatcher([device], timeout=5.0, window=6, queue_size=3) as d:
            return [(type(r.error), round(now(), 1)) async for r in d.results(range(12))]

    got = virtual(run())
    assert got[0] == (type(None), 0.1)
    assert got[1:7] == [(NoDeviceError, 5.1)] * 6
    assert got[7:] == [(NoDeviceError, 10.1)] * 5


def test_the_time_of_a_stream_s_task_counts_its_retries(virtual):
    async def run():
        driver = SimulatedDriver("a", 1.0, fail=lambda x: ValueError("no") if x == 3 else None)
        async with Dispatcher([driver], timeout=3.5, retries=100) as d:
            return [(type(r.error), r.attempts, now()) async for r in d.results(range(6))]

    got = virtual(run())
    assert [kind for kind, _, _ in got].count(DeadlineExceeded) == 1
    assert got[3] == (DeadlineExceeded, 3, 6.5)


def test_the_queue_limit_of_a_stream_counts_from_the_window(virtual):
    async def run(window):
        limit = Timeouts(queue=2.5)
        async with Dispatcher([SimulatedDriver("a", 1.0)], timeout=limit, window=window) as d:
            return [type(r.error) async for r in d.results(range(6))]

    assert virtual(run(2)) == [type(None)] * 6
    assert virtual(run(6)) == [type(None)] * 3 + [QueueTimeout] * 3


async def test_a_stream_s_limit_on_real_loops():
    timeout = Timeouts(total=0.05)
    async with Dispatcher([SimulatedDriver("a", 0.001)], timeout=timeout) as d:
        assert [y async for y in d.stream(range(200))] == list(range(200))


# ---- a call's


def test_the_wait_for_room_ends_with_the_error_of_the_first_limit(virtual):
    async def run(timeouts):
        device = SimulatedDriver("a", 2.0)
        async with Dispatcher([device], timeout=timeouts, window=1, queue_size=1) as d:
            got = await ends(d, 6)
            assert (await d.infer("next")) == "next"
            return [type(end) if not isinstance(end, type) else end for end, _ in got]

    assert virtual(run(Timeouts(queue=3.0))) == [int, int] + [QueueTimeout] * 4
    assert virtual(run(Timeouts(queue=9.0, total=3.0))) == [int] + [DeadlineExceeded] * 5


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
