"""Spans of tasks: cut anywhere they keep everything, and what parts ways does so alone."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from fakes import Noting, Picky, Uneven
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinfer import Dispatcher, Timeouts
from asyncinfer._core.tasks.spans import Row, Run, Span, Waiting
from asyncinfer.errors import ClosedError, DeadlineExceeded, QueueTimeout, TaskError
from asyncinfer.testing import SimulatedDriver

QUICK = 0.00002


def span(first, count):
    return Span(None, first, list(range(first, first + count)), 1.0)


def indices(spans):
    return [span.first + i for span in spans for i in range(span.count)]


def inputs(spans):
    return [x for span in spans for x in span.inputs]


def test_a_part_is_like_the_whole():
    whole = span(10, 5)
    whole.outputs, whole.run, whole.done = list("abcde"), Run("d", 1.0, 2.0), True
    head = whole.split(2)
    assert (head.first, head.count, head.inputs, head.outputs) == (10, 2, [10, 11], ["a", "b"])
    assert (whole.first, whole.count, whole.inputs) == (12, 3, [12, 13, 14])
    assert whole.outputs == ["c", "d", "e"]
    assert (head.run, head.done, head.submitted) == (whole.run, True, 1.0)


def test_singles_leave_the_span_as_it_was():
    whole = span(3, 3)
    singles = whole.singles()
    assert [(s.first, s.count, s.inputs) for s in singles] == [
        (3, 1, [3]),
        (4, 1, [4]),
        (5, 1, [5]),
    ]
    assert (whole.first, whole.count, whole.inputs) == (3, 3, [3, 4, 5])
    assert singles[1].singles() == [singles[1]], "and one by itself is what it is"


@pytest.mark.parametrize("kind", [Row, Waiting])
@settings(derandomize=True, deadline=None)
@given(st.data())
def test_a_row_is_a_list_of_tasks(kind, data):
    """Whatever is cut out of it and put back."""
    counts = data.draw(st.lists(st.integers(1, 6), max_size=6))
    row, model, out = kind(), [], []
    for count in counts:
        row.append(span(len(model), count))
        model += range(len(model), len(model) + count)
    for _ in range(data.draw(st.integers(0, 12))):
        if out and data.draw(st.booleans()):
            back = out.pop(data.draw(st.integers(0, len(out) - 1)))
            row.merge(back)
            model = sorted(model + indices(back))
        else:
            offset = data.draw(st.integers(0, len(model) + 1))
            count = data.draw(st.integers(0, 9))
            taken = row.take(count, offset)
            assert indices(taken) == inputs(taken) == model[offset : offset + count]
            del model[offset : offset + count]
            out.append(taken)
        assert (len(row), row.tasks, bool(row)) == (len(model), len(model), bool(model))
        assert indices(row) == inputs(row) == model
        assert [row.index(i) for i in range(len(row))] == model
    for one in list(row)[::2]:
        row.remove(one)
        model = [index for index in model if index not in indices([one])]
    row.remove(span(0, 1))
    assert indices(row.clear()) == model
    assert (len(row), list(row)) == (0, [])


def test_many_may_be_taken_from_anywhere():
    """Enough spans for many rows, made and emptied again."""
    rng = random.Random(42)
    row, model = Waiting(), list(range(20_000))
    for first in range(0, 20_000, 500):
        row.append(span(first, 500))
    while model:
        offset, count = rng.randrange(len(model)), rng.choice([1, 1, 7, 300])
        assert indices(row.take(count, offset)) == model[offset : offset + count]
        del model[offset : offset + count]
        assert len(row) == len(model)
        if rng.random() < 0.01:
            assert indices(row) == model
            row.merge([])
    assert list(row) == []


# ---- delivery in pieces


class Watched(SimulatedDriver):
    """Knows the highest input it was ever given."""

    def __init__(self, name, seconds, **options):
        super().__init__(name, seconds, **options)
        self.highest = -1

    async def infer(self, batch):
        self.highest = max(self.highest, *batch)
        return await super().infer(batch)


@pytest.mark.parametrize("window", [1, 2, 3, 8, 9, 100, 512])
@pytest.mark.parametrize("queue_size", [1, 300])
@pytest.mark.parametrize("max_batch", [1, 16])
def test_no_task_starts_before_the_window_reaches_it(virtual, window, queue_size, max_batch):
    async def run():
        read = 0

        def source():
            nonlocal read
            for read in range(1, 701):
                yield read - 1

        drivers = [Watched(f"d{i}", QUICK * (i + 1), max_batch=max_batch) for i in range(3)]
        async with Dispatcher(drivers, window=window, queue_size=queue_size) as d:
            taken = 0
            async for y in d.stream(source()):
                assert y == taken
                taken += 1
                await asyncio.sleep(QUICK * (taken % 50 == 0))
                assert max(driver.highest for driver in drivers) < taken + window
                assert read <= taken + window + queue_size
                if taken % 7:
                    continue
                stats = d.stats()
                undelivered = stats.finished - taken + stats.reorder_buffer
                queued = stats.queue_depth + stats.waiting
                assert queued + stats.running + undelivered <= window + queue_size
        assert taken == 700

    virtual(run())


@pytest.mark.parametrize("window", [1, 4, 1000])
def test_a_consumer_that_waits_has_opened_the_whole_window(virtual, window):
    """What it took counts as delivered once it asks for more, however small the window."""

    async def run():
        driver = Watched("a", 1.0, concurrency=window)
        async with Dispatcher([driver], window=window) as d, d.stream(iter(range(5000))) as ys:
            for taken in range(2000):
                assert await anext(ys) == taken
            waiting = asyncio.create_task(anext(ys))
            await asyncio.sleep(0.5)
            assert driver.highest == 1999 + window
            return await waiting

    assert virtual(run()) == 2000


def test_a_slow_device_finds_its_next_batch_filled(virtual):
    """While all devices are busy, a source goes on to be read into the window."""

    async def run():
        async def source():
            for x in range(33):
                await asyncio.sleep(0.001)
                yield x

        slow = Noting("a", 0.01, batch_cost=1.0, max_batch=16)
        async with Dispatcher([slow], queue_size=1) as d:
            assert [y async for y in d.stream(source())] == list(range(33))
        assert slow.sizes[0] == 1
        assert 16 in slow.sizes  # as soon as it has learnt what a call of another size costs

    virtual(run())


def test_closing_takes_the_rest_of_a_piece_away(virtual):
    async def run():
        async with Dispatcher([SimulatedDriver("a", QUICK)]) as d:
            closed = d.stream(range(1000))
            assert [await anext(closed) for _ in range(3)] == [0, 1, 2]
            await closed.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(closed)
            dropped, finished = d.stream(iter(range(10**9))), d.stream(range(50))
            assert [await anext(dropped), await anext(finished)] == [0, 0]
            await asyncio.sleep(1)
            await d.close()
            with pytest.raises(ClosedError):
                await anext(dropped)
            assert [y async for y in finished] == list(range(1, 50)), "all had been done"

    virtual(run())


def test_two_readers_share_a_stream(virtual):
    """Nothing is lost or given twice, whoever is quicker."""

    async def run():
        async with Dispatcher([SimulatedDriver("a", QUICK)]) as d:
            stream, got = d.stream(range(3000)), []

            async def read():
                while len(got) < 3000:
                    with contextlib.suppress(RuntimeError):
                        got.append(await anext(stream))
                    await asyncio.sleep(QUICK)

            readers = [asyncio.create_task(read()) for _ in range(3)]
            await asyncio.wait(readers, timeout=10)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
            return got

    assert sorted(virtual(run())) == list(range(3000))


# ---- parting ways


@pytest.mark.parametrize("ordered", [True, False])
def test_errors_in_the_place_of_outputs_are_those_of_their_tasks_alone(virtual, ordered):
    class Picky(SimulatedDriver):
        async def infer(self, batch):
            await super().infer(batch)
            return [ValueError(x) if x % 7 == 3 else -x for x in batch]

    async def run():
        drivers = [Picky("a", QUICK), Picky("b", QUICK, max_batch=5)]
        async with Dispatcher(drivers, retries=1) as d:
            results = [r async for r in d.results(range(500), ordered=ordered)]
        assert sorted(r.index for r in results) == list(range(500))
        for r in results:
            if r.index % 7 == 3:
                assert (r.attempts, r.error.index, len(r.error.causes)) == (2, r.index, 2)
                assert [cause.args for cause in r.error.causes] == [(r.index,)] * 2
            else:
                assert (r.value, r.attempts, r.error) == (-r.index, 1, None)

    virtual(run())


def test_a_deadline_ends_the_part_of_a_burst_that_is_late(virtual):
    async def run():
        device = Uneven("a", QUICK, {1010: 100.0})
        async with Dispatcher([device], timeout=Timeouts(total=1.0), window=4096) as d:
            results = [r async for r in d.results(range(1500))]
            assert [r.index for r in results] == list(range(1500))
            (late,) = (r for r in results if r.error is not None)
            assert (late.index, late.error.index) == (1010, 1010), "what is behind it has its time"
            assert type(late.error) is DeadlineExceeded
            assert 1.0 <= late.finished - late.submitted < 1.1
            assert await d.infer("next") == "next", "the device is free again"
            stats = d.stats()
            assert (stats.failed, stats.running, stats.waiting) == (1, 0, 0)

    virtual(run())


def test_a_queue_timeout_ends_what_was_reserved_and_not_started(virtual):
    async def run():
        device = Uneven("a", QUICK, {1010: 5.0})
        async with Dispatcher([device], timeout=Timeouts(queue=1.0), window=4096) as d:
            results = [r async for r in d.results(range(1500))]
        assert [r.index for r in results if r.error is None] == list(range(1011))
        assert {type(r.error) for r in results[1011:]} == {QueueTimeout}

    virtual(run())


def test_of_a_batch_that_failed_each_task_keeps_its_own_history(virtual):
    async def run():
        device = Picky("a", 0.01, lambda batch: 13 in batch, max_batch=8)
        async with Dispatcher([device], retries=1) as d:
            return [r async for r in d.results(range(32))]

    results = virtual(run())
    assert [r.value for r in results if r.index != 13] == [i for i in range(32) if i != 13]
    error = results[13].error
    assert isinstance(error, TaskError)
    assert (error.index, len(error.causes)) == (13, error.attempts)


def test_inputs_of_an_async_source_are_accepted_together(virtual):
    """As one span, if they come at once; each at its own time if they do not."""

    async def source(pause):
        for x in range(100):
            if pause:
                await asyncio.sleep(pause)
            yield x

    async def run(pause):
        async with Dispatcher([SimulatedDriver("a", 0.001)]) as d:
            results = [r async for r in d.results(source(pause))]
        assert [r.index for r in results] == [r.value for r in results] == list(range(100))
        return len({r.submitted for r in results})

    assert virtual(run(0)) == 1
    assert virtual(run(0.01)) == 100
