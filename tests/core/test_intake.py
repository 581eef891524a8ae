"""The queue of spans, and reading sources: lazily, no further than there is room, in turns."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinfer._core.tasks.ahead import ReadAhead
from asyncinfer._core.tasks.intake import Intake
from asyncinfer._core.tasks.source import feed
from asyncinfer._core.tasks.spans import Span


class Clock:
    """Shows the time it is set to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Reading:
    """One source being read into an intake, which is emptied on demand."""

    def __init__(self, source, size, clock=None):
        self.clock = clock or Clock()
        self.intake = Intake(size)
        self.accepted = []
        ahead = ReadAhead(self.intake, (), math.inf)
        self.task = asyncio.create_task(feed(source, ahead, self.accept, self.clock))

    def accept(self, inputs):
        first = len(self.accepted)
        self.accepted += inputs
        self.intake.put_nowait(Span(None, first, inputs, 0.0))

    def take(self, most):
        return [] if self.intake.empty() else self.intake.take(most).inputs


async def settle():
    for _ in range(60):
        await asyncio.sleep(0)


def synchronous(count):
    yield from range(count)


async def asynchronous(count):
    for x in range(count):
        await asyncio.sleep(0)
        yield x


async def never_waiting(count):
    for x in range(count):
        yield x


@pytest.mark.parametrize("make", [range, synchronous, asynchronous, never_waiting])
@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    count=st.integers(0, 60),
    size=st.integers(1, 20),
    takes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_everything_is_read_once_in_order_and_never_ahead_of_the_room(
    virtual, make, count, size, takes
):
    async def run():
        reading, got = Reading(make(count), size), []
        while len(got) < count:
            await settle()
            for most in takes:
                assert reading.intake.qsize() == len(reading.accepted) - len(got) <= size
                burst = reading.take(most)
                assert len(burst) <= most
                got += burst
        await reading.task
        assert got == list(range(count))

    virtual(run())


@pytest.mark.parametrize("make", [synchronous, asynchronous, never_waiting])
def test_it_fills_up_and_waits(virtual, make):
    async def run():
        source = make(100)
        reading = Reading(source, 7)
        await settle()
        assert reading.accepted == list(range(7))
        assert reading.take(1) == [0]
        assert reading.intake.qsize() == 6
        await settle()
        assert reading.accepted == list(range(8))
        reading.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading.task
        frame = getattr(source, "gi_frame", None) or getattr(source, "ag_frame", None)
        assert frame is None, "the generator is closed"

    virtual(run())


def test_what_a_source_gave_before_it_failed_counts(virtual):
    def source():
        yield from range(10)
        raise LookupError

    async def run():
        reading = Reading(source(), 100)
        with pytest.raises(LookupError):
            await reading.task
        assert reading.accepted == list(range(10))

    virtual(run())


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("quick_at_first", [0, 3, 1000])
def test_a_slow_source_leaves_the_loop_its_turns(virtual, is_async, quick_at_first):
    """However quick it was before: no turn is longer than a few inputs."""

    async def run():
        clock, turns = Clock(), []

        def source():
            for x in range(quick_at_first + 50):
                if x >= quick_at_first:
                    clock.now += 0.001
                yield x

        async def async_source():
            for x in source():
                yield x

        reading = Reading(async_source() if is_async else source(), 10_000, clock)
        while not reading.task.done():
            begun = clock.now
            await asyncio.sleep(0)
            turns.append(clock.now - begun)
        assert len(reading.accepted) == quick_at_first + 50
        assert sorted(turns)[-2] <= 0.0021
        assert max(turns) < 0.033, "the one in which it became slow"

    virtual(run())


def test_a_quick_source_is_read_in_large_bursts(virtual):
    async def run():
        reading, turns = Reading(iter(range(10_000)), 20_000), 0
        while not reading.task.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns < 100

    virtual(run())


def test_tasks_are_counted_not_spans(virtual):
    async def run():
        intake = Intake(5)
        intake.put_nowait(Span(None, 0, ["a", "b"], 0.0))
        assert (intake.qsize(), intake.full(), await intake.room()) == (2, False, 3)
        intake.put_nowait(Span(None, 2, ["c", "d", "e"], 0.0))
        assert intake.full()
        waiting = asyncio.create_task(intake.room())
        await settle()
        assert not waiting.done()
        assert intake.take(1).inputs == ["a"]
        assert await waiting == 1
        rest = intake.take(9)
        assert (rest.first, rest.inputs) == (1, ["b"])
        assert intake.take(9).inputs == ["c", "d", "e"]
        with pytest.raises(asyncio.QueueEmpty):
            intake.take(1)

    virtual(run())


async def callers(intake, count, log):
    async def one(n):
        await intake.room()
        log.append(n)
        intake.put_nowait(Span(None, n, [n], 0.0))

    tasks = [asyncio.create_task(one(n)) for n in range(count)]
    await settle()
    return tasks


async def test_room_goes_to_those_who_wait_in_their_order():
    intake, log = Intake(2), []
    tasks = await callers(intake, 6, log)
    assert log == [0, 1]
    for count in (3, 4, 5, 6):
        intake.take(1)
        await settle()
        assert log == list(range(count))
        assert intake.qsize() == 2
    await asyncio.gather(*tasks)


async def test_a_place_is_not_lost_with_the_caller_it_was_for():
    intake, log = Intake(1), []
    tasks = await callers(intake, 4, log)
    tasks[1].cancel()  # while it waits
    await settle()
    intake.take(1)  # calls number 2, who is cancelled before it looks
    tasks[2].cancel()
    await settle()
    assert log == [0, 3]
    assert [task.cancelled() for task in tasks] == [False, True, True, False]


async def test_no_caller_is_woken_for_nothing():
    looks = []

    class Watched(Intake):
        def full(self):
            looks.append(1)
            return super().full()

    intake = Watched(1)
    tasks = await callers(intake, 200, [])
    looks.clear()
    for _ in range(199):
        intake.take(1)
        await settle()
    await asyncio.gather(*tasks)
    assert len(looks) <= 3 * 199  # not one for each that waits, each time
