"""Devices that remember what came before: a stream stays on one of them, from its beginning."""

from __future__ import annotations

import asyncio
import random
from itertools import accumulate, takewhile

import pytest

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer.errors import (
    ConfigError,
    DeviceLost,
    DeviceTimeout,
    InputError,
    StateLost,
    TaskError,
)
from asyncinfer.testing import SimulatedDriver


class Summing(SimulatedDriver):
    """Answers with the sum of all inputs since it was reset, and with its own name."""

    stateful = True

    def __init__(self, name, seconds, *, dies_at=None, **options):
        super().__init__(name, seconds, **options)
        self.total, self.resets, self.dies_at = 1000, 0, dies_at

    async def reset(self):
        await asyncio.sleep(0.001)
        self.total, self.resets = 0, self.resets + 1

    async def infer(self, batch):
        (x,) = await super().infer(batch)
        if x == self.dies_at:
            self.dies_at = None
            raise DeviceLost(self.name, "unplugged")
        if isinstance(x, str):
            raise InputError(f"no number: {x}")
        if x < 0:
            raise ValueError("negative")
        self.total += x
        return [(self.total, self.name)]


def sums(results):
    return [total for total, _ in results]


async def collect(stream):
    return [y async for y in stream]


@pytest.mark.parametrize("ordered", [True, False])
def test_each_stream_has_a_device_to_itself_and_begins_anew(virtual, ordered):
    async def run():
        drivers = [Summing("a", 0.1), Summing("b", 0.25)]
        async with Dispatcher(drivers, window=4, hedge=Hedge(least=0.001)) as d:
            inputs = [range(1, 30), range(100, 150), range(7), range(0, 90, 3), range(5)]
            got = await asyncio.gather(*(collect(d.stream(xs, ordered=ordered)) for xs in inputs))
            assert d.stats().hedging.started == 0
        for xs, ys in zip(inputs, got, strict=True):
            assert sums(ys) == list(accumulate(xs))
            assert len({name for _, name in ys}) == 1
        assert sum(driver.resets for driver in drivers) == len(inputs)
        assert all(driver.resets for driver in drivers)

    virtual(run())


def test_a_stream_that_is_left_gives_its_device_to_the_next(virtual):
    async def run():
        async with Dispatcher([Summing("a", 0.1)]) as d:
            async with d.stream(range(1, 1000)) as stream:
                assert sums([await anext(stream) for _ in range(3)]) == [1, 3, 6]
            assert sums(await collect(d.stream([5, 6]))) == [5, 11]

    virtual(run())


def test_a_stream_waits_until_a_device_is_free_of_others(virtual):
    async def run():
        async with Dispatcher([Summing("a", 0.1)], timeout=Timeouts(queue=3.0)) as d:
            first = asyncio.create_task(collect(d.stream(range(20))))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(collect(d.stream([1])))
            assert sums(await second) == [1]
            assert sums(await first) == list(accumulate(range(20)))

    virtual(run())


def test_a_failed_task_fails_once_and_the_stream_goes_on(virtual):
    async def run():
        async with Dispatcher([Summing("a", 0.1), Summing("b", 0.1)], retries=5) as d:
            got = await collect(d.stream([1, "x", 2, -1, 3], return_exceptions=True))
            assert isinstance(got[1], TaskError)
            assert isinstance(got[3], TaskError)
            assert (got[1].attempts, got[3].attempts) == (1, 1)
            assert sums([got[0], got[2], got[4]]) == [1, 3, 6]

    virtual(run())


@pytest.mark.parametrize("others", [0, 1])
def test_what_a_lost_device_knew_is_not_made_up(virtual, others):
    """No later task of the stream is answered, neither elsewhere nor by the device reopened."""

    async def run():
        drivers = [Summing("a", 0.1, dies_at=3), *(Summing("b", 0.2) for _ in range(others))]
        async with Dispatcher(drivers) as d:
            got = await collect(d.stream(range(100), return_exceptions=True))
            assert sums(got[:3]) == [0, 1, 3]
            assert isinstance(got[3], TaskError)
            assert isinstance(got[3].causes[0], DeviceLost)
            assert all(type(error) is StateLost for error in got[4:])
            assert "device 'a'" in str(got[50])
            assert sums(await collect(d.stream(range(5)))) == [0, 1, 3, 6, 10]

    virtual(run())


@pytest.mark.parametrize("drain", [True, False])
def test_a_removed_device_takes_its_stream_with_it(virtual, drain):
    async def run():
        async with Dispatcher([Summing("a", 0.1), Summing("b", 1.0)]) as d:
            stream = d.stream(range(100), return_exceptions=True)
            begun = [await anext(stream) for _ in range(3)]
            await d.remove("a", drain=drain)
            rest = await collect(stream)
            answered = [y for y in rest if not isinstance(y, TaskError)]
            assert sums([*begun, *answered]) == list(accumulate(range(3 + len(answered))))
            assert len(answered) <= 1
            assert sums(await collect(d.stream([4, 4]))) == [4, 8]

    virtual(run())


def test_a_device_that_cannot_be_reset_is_lost(virtual):
    class Stubborn(Summing):
        async def reset(self):
            raise ValueError("no")

    async def run():
        async with Dispatcher([Stubborn("a", 0.1)]) as d:
            with pytest.raises(TaskError, match="could not be reset: ValueError: no"):
                await collect(d.stream([1]))

    virtual(run())


def test_single_calls_are_refused(virtual):
    async def run():
        async with Dispatcher([Summing("a", 0.1)]) as d:
            with pytest.raises(ConfigError, match="use stream"):
                await d.infer(1)

    virtual(run())


def test_stateful_devices_and_others_do_not_mix(virtual):
    async def run():
        with pytest.raises(ConfigError, match="'b' is not stateful and others are stateful"):
            async with Dispatcher([Summing("a", 0.1), SimulatedDriver("b", 0.1)]):
                pass
        async with Dispatcher([SimulatedDriver("a", 0.1)]) as d:
            with pytest.raises(ConfigError, match="'b' is stateful and others are not"):
                await d.add(Summing("b", 0.1))

    virtual(run())


@pytest.mark.parametrize("options", [{"max_batch": 2}, {"concurrency": 2}])
def test_a_stateful_device_runs_one_task_after_the_other(options):
    with pytest.raises(ConfigError, match="max_batch and concurrency must be 1"):
        Dispatcher([Summing("a", 0.1, **options)])


def test_a_stateful_device_can_be_reset():
    driver = SimulatedDriver("a", 0.1)
    driver.stateful = True
    with pytest.raises(ConfigError, match="coroutine method reset"):
        Dispatcher([driver])


class Dying(Summing):
    """Is lost now and then, by chance."""

    def __init__(self, name, seconds, chances):
        super().__init__(name, seconds)
        self.chances = chances

    async def infer(self, batch):
        if self.chances.random() < 0.02:
            raise DeviceLost(self.name, "by chance")
        return await super().infer(batch)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_no_answer_is_made_without_what_came_before(virtual, seed):
    chances = random.Random(seed)

    async def run():
        drivers = [Dying(f"d{n}", chances.uniform(0.001, 0.1), chances) for n in range(3)]
        async with Dispatcher(drivers, window=chances.choice([1, 4, 1000])) as d:
            streams = [
                [chances.randrange(100) for _ in range(chances.randrange(60))] for _ in "123456"
            ]
            tasks = [collect(d.stream(xs, return_exceptions=True)) for xs in streams]
            got = await asyncio.gather(*tasks)
        for xs, ys in zip(streams, got, strict=True):
            answered = list(takewhile(lambda y: not isinstance(y, TaskError), ys))
            assert sums(answered) == list(accumulate(xs))[: len(answered)]
            assert all(isinstance(y, TaskError) for y in ys[len(answered) :])
            assert len(ys) == len(xs)

    virtual(run())


def test_a_reset_that_hangs_is_a_lost_device(virtual):
    class Hanging(Summing):
        async def reset(self):
            await asyncio.sleep(1e6)

    async def run():
        async with Dispatcher([Hanging("a", 0.1)], timeout=Timeouts(run=1.0)) as d:
            results = [r async for r in d.results([1, 2])]
            assert isinstance(results[0].error.causes[0], DeviceTimeout)
            assert isinstance(results[1].error, StateLost)
            assert asyncio.get_running_loop().time() < 10

    virtual(run())


@pytest.mark.parametrize(
    "timeout", [Timeouts(queue=2.5), Timeouts(total=2.5)], ids=["queue", "total"]
)
def test_nothing_is_answered_behind_a_task_that_ran_out_of_time(virtual, timeout):
    """The device has not seen it, or has been stopped in the middle of it."""

    class Slow(Summing):
        async def infer(self, batch):
            if batch == [2]:
                await asyncio.sleep(5.0)
            return await super().infer(batch)

    async def source():
        for x in range(8):
            yield x
            await asyncio.sleep(1.0)

    async def run():
        async with Dispatcher([Slow("a", 0.01)], timeout=timeout) as d:
            got = await collect(d.stream(source(), return_exceptions=True))
            answered = list(takewhile(lambda y: not isinstance(y, TaskError), got))
            assert sums(answered) == list(accumulate(range(8)))[: len(answered)]
            assert len(answered) >= 2
            assert all(isinstance(y, TaskError) for y in got[len(answered) :])
            assert "ran out of time" in str(got[-1])
            assert sums(await collect(d.stream([1, 1]))) == [1, 2]

    virtual(run())


def test_a_stream_does_not_begin_in_its_middle(virtual):
    async def run():
        async with Dispatcher([Summing("a", 1.0)], timeout=Timeouts(queue=2.5)) as d:
            first = asyncio.create_task(collect(d.stream(range(5), return_exceptions=True)))
            await asyncio.sleep(0.1)

            async def source():
                for x in range(9):
                    yield x
                    await asyncio.sleep(1.0)

            got = await collect(d.stream(source(), return_exceptions=True))
            await first
        assert all(isinstance(y, TaskError) for y in got)

    virtual(run())
