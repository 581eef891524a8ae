"""Batches: how large, of whom, and that every answer reaches who asked for it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fakes import Picky
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinfer import Dispatcher
from asyncinfer.errors import InputError, TaskError
from asyncinfer.testing import SimulatedDriver


def batcher(name="a", service_time=0.1, *, poison=lambda x: False, **options):
    """One of batches that raises if ``poison`` says so of an input."""
    options = {"max_batch": 8, "batch_cost": 0.5, "function": lambda x: ("out", x), **options}
    return Picky(name, service_time, lambda batch: any(map(poison, batch)), **options)


def test_a_batch_is_of_consecutive_tasks_up_to_the_most(virtual):
    async def run():
        driver = batcher(max_batch=8)
        async with Dispatcher([driver]) as d:
            assert [y async for y in d.stream(range(100))] == [("out", x) for x in range(100)]
        return driver.batches

    batches = virtual(run())
    assert [x for batch in batches for x in batch] == list(range(100))
    assert all(len(batch) <= 8 for batch in batches)
    assert Counter(map(len, batches))[8] >= 11


def test_nothing_waits_for_a_batch_to_fill(virtual):
    async def run():
        driver = batcher()
        async with Dispatcher([driver]) as d:
            await d.infer(0)
            return asyncio.get_running_loop().time(), driver.batches

    assert virtual(run()) == (pytest.approx(0.6), [[0]])


def test_calls_of_many_callers_share_batches_and_each_gets_its_own_answer(virtual):
    async def run():
        driver = batcher()
        async with Dispatcher([driver]) as d:
            got = await asyncio.gather(*(d.infer(x) for x in range(50)))
        assert got == [("out", x) for x in range(50)]
        return driver.batches

    batches = virtual(run())
    assert max(map(len, batches)) == 8
    assert len(batches) <= 8


def test_a_cancelled_caller_does_not_disturb_those_who_share_its_batch(virtual):
    async def run():
        driver = batcher()
        async with Dispatcher([driver]) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(4)]
            await asyncio.sleep(0.3)
            assert driver.batches == [[0, 1, 2, 3]]
            calls[1].cancel()
            got = await asyncio.gather(*calls, return_exceptions=True)
            assert [got[0], got[2], got[3]] == [("out", 0), ("out", 2), ("out", 3)]
            assert isinstance(got[1], asyncio.CancelledError)
            for call in [asyncio.create_task(d.infer(x)) for x in range(4)]:
                await asyncio.sleep(0.01)
                call.cancel()
            await asyncio.sleep(0.01)
            assert d.stats().running == 0, "with all callers gone, the call is cancelled"

    virtual(run())


def test_one_bad_item_fails_alone_though_the_whole_batch_raised(virtual):
    async def run():
        driver = batcher(poison=lambda x: x == 13)
        async with Dispatcher([driver], retries=1) as d:
            results = [r async for r in d.results(range(24))]
        bad = results.pop(13)
        assert [r.value for r in results] == [("out", x) for x in range(24) if x != 13]
        assert all(r.attempts == 1 for r in results), "the batch counts for none of them"
        assert [str(cause) for cause in bad.error.causes] == ["cannot stack 1"] * 2
        return driver.batches

    batches = virtual(run())
    assert sum(13 in batch and len(batch) > 1 for batch in batches) == 1


def test_an_error_in_its_place_fails_alone(virtual):
    async def run():
        driver = SimulatedDriver(
            "a", 0.1, max_batch=8, fail=lambda x: InputError("odd") if x % 2 else None
        )
        async with Dispatcher([driver]) as d:
            got = await asyncio.gather(*(d.infer(x) for x in range(8)), return_exceptions=True)
            assert d.stats().devices[0].batches == 1
            return got

    got = virtual(run())
    assert got[::2] == [0, 2, 4, 6]
    assert all(isinstance(error, TaskError) for error in got[1::2])


def test_a_batch_lost_with_its_device_moves_whole(virtual):
    async def run():
        first = SimulatedDriver("a", 0.1, max_batch=8, fail=lambda x: x == 3)
        second = batcher("b", 0.3)
        async with Dispatcher([first, second]) as d:
            results = [r async for r in d.results(range(8))]
            assert [r.value in (r.index, ("out", r.index)) for r in results] == [True] * 8
            assert results[3].device == "b"

    virtual(run())


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    poisoned=st.sets(st.integers(0, 59), max_size=6),
    in_place=st.sets(st.integers(0, 59), max_size=6),
    times=st.lists(st.sampled_from([0.0, 0.01, 0.3]), min_size=3, max_size=3),
    calls=st.booleans(),
)
def test_answer_i_belongs_to_input_i(virtual, sizes, poisoned, in_place, times, calls):
    async def run():
        drivers = [
            batcher(
                f"d{i}",
                times[i],
                max_batch=size,
                poison=poisoned.__contains__,
                fail=lambda x: InputError("bad") if x in in_place else None,
            )
            for i, size in enumerate(sizes)
        ]
        async with Dispatcher(drivers, window=17, queue_size=5) as d:
            if calls:
                awaited = (d.infer(x) for x in range(60))
                return await asyncio.gather(*awaited, return_exceptions=True)
            return [y async for y in d.stream(range(60), return_exceptions=True)]

    got = virtual(run())
    assert len(got) == 60
    for x, y in enumerate(got):
        if x in poisoned:
            assert isinstance(y, TaskError)
            assert y.attempts == 3
        elif x in in_place:
            assert isinstance(y, TaskError)
            assert isinstance(y.causes[-1], InputError)
        else:
            assert y == ("out", x)
