"""Copies of overdue tasks: when they are made, which result counts, and what it all costs."""

from __future__ import annotations

import asyncio
from collections import Counter

import inside
import pytest
from fakes import Stalling, Uneven, Unknown, deaf

from asyncinfer import Dispatcher, Hedge
from asyncinfer.errors import ConfigError, DeviceLost, InputError, TaskError
from asyncinfer.stats import HedgeStats
from asyncinfer.testing import SimulatedDriver

#: whatever is of use is copied at once
EAGER = Hedge(budget=1.0)


class Slow(Uneven):
    """Answers with its name."""

    def answer(self, x):
        return x, self.name


class Stubborn(Slow):
    """Cannot be interrupted, as a thread cannot."""

    async def infer(self, batch):
        return await deaf(super().infer(batch), forgets=False)


class Deaf(Slow):
    """Hears of no cancellation: its result comes late, as if nothing had happened."""

    async def infer(self, batch):
        return await deaf(super().infer(batch))


async def run(drivers, tasks, *, hedge=EAGER, ordered=True, **options):
    """The results of one stream, the final statistics, and the events by kind."""
    events = []
    d = Dispatcher(drivers, hedge=hedge, on_event=events.append, **options)
    async with d:
        results = [r async for r in d.results(range(tasks), ordered=ordered)]
    if ordered:
        assert [r.index for r in results] == list(range(tasks))
    assert sorted(r.index for r in results) == list(range(tasks))
    stats = d.stats()
    copies = stats.hedging
    assert copies.started == copies.won + copies.lost + copies.cancelled
    assert copies.started == sum(event.kind == "task.hedged" for event in events)
    assert stats.finished == tasks
    return results, stats, events


def test_the_first_result_wins_and_the_other_call_is_cancelled(virtual):
    a, b = Slow("a", 1.0, {0: 100.0}), Slow("b", 1.0)
    results, stats, events = virtual(run([a, b], 20))
    assert results[0].value == (0, "b")
    assert results[0].device == "b"
    assert results[0].attempts == 1
    assert a.cancelled == [[0]]
    assert stats.hedging == HedgeStats(started=1, won=1, seconds=1.0)
    assert results[0].finished == 3.0, "late by its own time at 2 s, and one more for the copy"
    hedged = next(event for event in events if event.kind == "task.hedged")
    assert (hedged.device, hedged.index, hedged.stream, hedged.time) == ("b", 0, 1, 2.0)
    assert Counter(r.value for r in results)[0, "b"] == 1


def test_without_it_nothing_is_copied_that_does_not_seem_to_hang(virtual):
    a, b = Slow("a", 1.0, {0: 4.0}), Slow("b", 1.0)
    results, stats, _ = virtual(run([a, b], 20, hedge=None))
    assert results[0].value == (0, "a")
    assert stats.hedging == HedgeStats()
    assert not a.cancelled


def test_the_original_may_still_be_first(virtual):
    a, b = Slow("a", 1.0, {0: 2.5}), Slow("b", 1.0)
    results, stats, _ = virtual(run([a, b], 20))
    assert results[0].value == (0, "a")
    assert b.cancelled == [[0]]
    assert stats.hedging == HedgeStats(started=1, lost=1, seconds=0.5)


def test_a_device_that_cannot_be_interrupted_is_busy_until_its_call_ends(virtual):
    a, b = Stubborn("a", 1.0, {0: 10.5}), Slow("b", 1.0)
    results, stats, _ = virtual(run([a, b], 20))
    assert results[0].value == (0, "b")
    assert stats.hedging.won == 1
    assert [x for x in a.batches if x != [0]], "it is used again afterwards"
    assert min(r.started for r in results if r.device == "a") == 10.5
    assert stats.failed == stats.retried == 0


def test_a_copy_that_cannot_be_interrupted_is_counted_to_its_end(virtual):
    a, b = Slow("a", 1.0, {0: 2.5}), Stubborn("b", 1.0)
    results, stats, _ = virtual(run([a, b], 20))
    assert results[0].value == (0, "a")
    assert stats.hedging == HedgeStats(started=1, lost=1, seconds=1.0)


def test_a_result_that_comes_late_does_not_replace_the_first_one(virtual):
    async def main():
        a, b = Deaf("a", 1.0, {3: 10.5}), Slow("b", 1.0)
        async with Dispatcher([a, b], hedge=EAGER, policy="greedy") as d:
            stream = d.stream(range(8))
            first = await anext(stream)
            await asyncio.sleep(20.0)
            rest = [y async for y in stream]
            assert [a.batches[1], first[0], *(x for x, _ in rest)] == [[3], *range(8)]
            assert rest[2] == (3, "b")
            assert d.stats().hedging.won == 1

    virtual(main())


@pytest.mark.parametrize("acts", ["a", "b"])
def test_never_where_running_a_task_has_side_effects(virtual, acts):
    a, b = Slow("a", 1.0, {0: 30.0}), Slow("b", 1.0)
    {"a": a, "b": b}[acts].side_effects = True
    results, stats, _ = virtual(run([a, b], 20))
    assert results[0].value == (0, "a")
    assert stats.hedging.started == 0


def test_only_the_head_of_an_ordered_stream(virtual):
    drivers = [Slow("a", 1.0, {0: 9.0}), Slow("b", 1.0, {1: 9.0}), Slow("c", 1.0), Slow("d", 1.0)]
    _, _, events = virtual(run(drivers, 40))
    hedged = [(event.index, event.time) for event in events if event.kind == "task.hedged"]
    assert hedged == [(0, 2.0), (1, 3.0)], "though two devices could have copied both"


def test_tasks_without_order_are_their_own_heads(virtual):
    drivers = [Slow("a", 1.0, {0: 9.0}), Slow("b", 1.0, {1: 9.0}), Slow("c", 1.0)]
    results, stats, _ = virtual(run(drivers, 30, ordered=False))
    assert stats.hedging.won == 2
    assert max(r.finished - r.started for r in results) == 1.0


def test_calls_too(virtual):
    async def main():
        a, b = Slow("a", 1.0, {"x": 100.0}), Slow("b", 1.5)
        async with Dispatcher([a, b], hedge=EAGER) as d:
            assert await d.infer("x") == ("x", "b")
            assert asyncio.get_running_loop().time() == 4.0
            await asyncio.sleep(0)
            assert d.stats().hedging.won == 1

    virtual(main())


def test_a_slower_device_copies_only_if_that_is_sooner(virtual):
    fast, slow = Slow("fast", 0.01, {5: 0.1}), Slow("slow", 1.0)
    _, stats, _ = virtual(run([fast, slow], 50))
    assert stats.hedging.started == 0


def test_what_is_usual_for_a_device_is_not_overdue(virtual):
    often = dict.fromkeys(range(0, 400, 5), 4.0)
    hedges = {q: Hedge(quantile=q, budget=1.0) for q in (0.5, 0.999)}
    copies = {}
    for q, hedge in hedges.items():
        drivers = [Slow("a", 1.0, often), Slow("b", 1.0)]
        _, stats, _ = virtual(run(drivers, 400, hedge=hedge))
        copies[q] = stats.hedging.started
    assert copies[0.5] > 2 * copies[0.999]


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.05])
def test_the_budget_is_kept(virtual, budget):
    often = dict.fromkeys(range(0, 1000, 7), 4.0)  # with more they would seem to hang
    drivers = [Slow("a", 1.0, often), Slow("b", 1.0), Slow("c", 1.0)]
    hedge = Hedge(quantile=0.5, budget=budget)
    _, stats, _ = virtual(run(drivers, 1000, hedge=hedge))
    busy = sum(device.busy_seconds for device in stats.devices)
    assert 0.3 * budget * busy < stats.hedging.seconds <= budget * busy + 1e-9


def test_reserved_tasks_do_not_wait_for_an_overdue_call(virtual):
    a, b = Slow("a", 0.0001, {3: 50.0}), Slow("b", 0.0001)
    results, _, _ = virtual(run([a, b], 2000, hedge=Hedge(budget=1.0)))
    assert max(r.delivered - r.finished for r in results) < 0.02


# ---- batches, and several calls at once


def test_a_whole_batch_is_copied(virtual):
    a = Slow("a", 1.0, {1: 60.0}, max_batch=4)
    b = Slow("b", 1.0, max_batch=4)
    results, stats, _ = virtual(run([a, b], 40, policy="greedy"))
    assert [r.value[1] for r in results if r.index in (0, 1, 2, 3)] == ["b"] * 4
    assert [0, 1] in b.batches, "in calls as large as are of use on that device"
    assert stats.hedging.won == 4
    assert stats.hedging.seconds == 4.0


def test_of_a_batch_as_much_as_the_other_takes(virtual):
    a, b = Slow("a", 1.0, {1: 60.0}, max_batch=4), Slow("b", 1.0)
    results, stats, _ = virtual(run([a, b], 8, policy="greedy"))
    assert stats.hedging.won >= 1
    assert results[0].value == (0, "b")


def test_with_several_calls_at_once_the_overdue_one(virtual):
    a = Slow("a", 1.0, {0: 60.0, 1: 60.0}, concurrency=3)
    b = Slow("b", 1.0, concurrency=2)
    results, stats, _ = virtual(run([a, b], 60))
    assert {results[0].value[1], results[1].value[1]} == {"b"}
    assert stats.hedging.won == 2


# ---- when one of the two goes wrong


def test_a_copy_that_fails_with_its_device_leaves_the_original_alone(virtual):
    a, b = Slow("a", 1.0, {0: 5.0}), Slow("b", 1.0)
    b.ends[0] = DeviceLost("b", "unplugged")
    results, stats, _ = virtual(run([a, b], 3, retries=0))
    assert results[0].value == (0, "a")
    assert results[0].attempts == 1
    assert stats.hedging == HedgeStats(started=1, cancelled=1, seconds=1.0)
    assert stats.retried == 0


def test_the_copy_goes_on_alone_when_the_original_is_lost(virtual):
    a, b = Slow("a", 1.0, {0: 2.5}), Slow("b", 1.0)
    a.ends[0] = DeviceLost("a", "unplugged")
    results, stats, _ = virtual(run([a, b], 3, retries=0))
    assert results[0].value == (0, "b")
    assert stats.hedging.won == 1
    assert stats.retried == stats.failed == 0


def test_both_lost_is_one_attempt(virtual):
    a, b, c = Slow("a", 1.0, {0: 2.5}), Slow("b", 1.0), Slow("c", 1.2)
    a.ends[0], b.ends[0] = DeviceLost("a", "unplugged"), DeviceLost("b", "unplugged")
    results, stats, _ = virtual(run([a, b, c], 3, retries=1))
    assert results[0].value == (0, "c")
    assert results[0].attempts == 2
    assert stats.retried == 1


def test_of_a_task_that_fails_the_error_has_the_causes_of_both_calls(virtual):
    a, b = Slow("a", 1.0, {0: 2.5}), Slow("b", 1.0)
    a.ends[0], b.ends[0] = DeviceLost("a", "unplugged"), DeviceLost("b", "unplugged")
    results, stats, _ = virtual(run([a, b], 3, retries=0))
    error = results[0].error
    assert (error.attempts, error.devices) == (1, ("a", "b"))
    assert results[0].attempts == 1
    assert stats.retried == 0


class Unplugged(Slow):
    """Is lost when it has run task 0, as long as ``losses`` lasts, which devices may share."""

    def __init__(self, name, losses, slow=()):
        super().__init__(name, 1.0, slow)
        self.losses = losses

    async def infer(self, batch):
        outputs = await super().infer(batch)
        if 0 in batch and self.losses:
            raise DeviceLost(self.name, self.losses.pop())
        return outputs


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("ends_well", [False, True])
def test_a_copied_task_may_run_once_more_but_has_no_attempt_more(virtual, retries, ends_well):
    runs = retries + 2
    losses = ["unplugged"] * (runs - ends_well)
    a, b = Unplugged("a", losses, {0: 2.5}), Unplugged("b", losses)
    (first, *_), stats, _ = virtual(run([a, b], 3, retries=retries))
    assert stats.hedging.started == 1
    assert (first.error is None) == ends_well
    assert first.attempts == retries + 1
    assert a.batches.count([0]) + b.batches.count([0]) == runs
    if first.error is not None:
        assert first.error.attempts == retries + 1
        assert len(first.error.causes) == len(first.error.devices) == runs


def test_a_copy_that_ended_without_a_fault_buys_no_further_attempt(virtual):
    async def main():
        drivers = [Slow("a", 1.0, {0: 50.0}), Slow("b", 1.0, {0: 50.0})]
        async with Dispatcher(drivers, hedge=EAGER, retries=0) as d:
            call = asyncio.create_task(d.infer(0))
            await asyncio.sleep(5)
            assert d.stats().hedging.started == 1
            for name in "cd":
                failing = Slow(name, 1.0)
                failing.ends[0] = ValueError(name)
                await d.add(failing)
            await asyncio.gather(*(d.remove(name, drain=False) for name in "ab"))
            with pytest.raises(TaskError) as caught:
                await call
            assert (caught.value.attempts, len(caught.value.causes)) == (1, 1)

    virtual(main())


def test_what_one_call_says_is_a_bad_input_the_other_one_shows(virtual):
    a, b = Slow("a", 1.0, {0: 50.0}), Slow("b", 1.0)
    b.ends[0] = lambda outputs: [InputError("a bad picture")]
    results, stats, _ = virtual(run([a, b], 3))
    assert (results[0].value, results[0].finished) == ((0, "a"), 50.0)
    assert stats.failed == 0
    assert a.cancelled == []


def test_after_an_error_that_may_pass_the_other_call_is_the_second_attempt(virtual):
    a, b = Slow("a", 1.0, {0: 5.0}), Slow("b", 1.0)
    b.ends[0] = ValueError("out of memory")
    results, stats, _ = virtual(run([a, b], 3))
    assert results[0].value == (0, "a")
    assert results[0].attempts == 2
    assert stats.retried == 1
    assert [0] not in b.batches[b.batches.index([0]) + 1 :]


@pytest.mark.parametrize("removed", ["a", "b"])
def test_a_device_of_the_pair_is_removed(virtual, removed):
    async def main():
        a, b = Slow("a", 1.0, {0: 8.0}), Slow("b", 1.0, {0: 4.0})
        async with Dispatcher([a, b, Slow("c", 9.0)], hedge=EAGER) as d:
            stream = d.results(range(1))
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(2.5)
            assert d.stats().hedging.started == 1
            assert d.stats().running == 2
            await d.remove(removed, drain=False)
            result = await reading
            assert result.device == ({"a", "b"} - {removed}).pop()
            assert d.stats().retried == 0

    virtual(main())


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_nobody_wants_it_any_more(virtual, how):
    async def main():
        a, b = Slow("a", 1.0, {"x": 90.0}), Slow("b", 1.0, {"x": 90.0})
        d = Dispatcher([a, b], hedge=EAGER)
        async with d:
            call = asyncio.ensure_future(d.infer("x"))
            await asyncio.sleep(2.5)
            assert d.stats().hedging.started == 1
            if how == "cancel":
                call.cancel()
            else:
                await d.close()
            await asyncio.gather(call, return_exceptions=True)
        assert a.cancelled == b.cancelled == [["x"]]
        assert d.stats().hedging == HedgeStats(started=1, cancelled=1, seconds=0.5)

    virtual(main())


# ---- what it brings


def test_a_stalling_device_holds_results_five_times_less_for_three_percent(virtual):
    holds, extra = {}, 0.0
    for hedge in (None, True):
        drivers = [
            Stalling("a", 0.01, chance=0.01),
            *(SimulatedDriver(name, 0.01) for name in "bcd"),
        ]
        results, stats, _ = virtual(run(drivers, 6000, hedge=hedge))
        ordered = sorted(r.delivered - r.finished for r in results)
        holds[hedge] = ordered[int(0.99 * len(ordered))]
        busy = sum(device.busy_seconds for device in stats.devices)
        extra = stats.hedging.seconds / busy
    assert holds[None] >= 5 * holds[True] > 0
    assert 0 < extra <= 0.03


def test_a_device_that_became_slow_is_not_copied_for_ever(virtual):
    slow = dict.fromkeys(range(500, 5000), 0.4)
    drivers = [Slow("a", 0.1, slow), Slow("b", 0.01)]
    results, stats, _ = virtual(run(drivers, 5000))
    assert 1 <= stats.hedging.started <= 5
    assert sum(r.device == "a" and r.index > 600 for r in results) > 50, "and works at its own pace"


# ---- what it takes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 0}, "quantile must be more than 0 and at most 1, not 0"),
        ({"quantile": 1.1}, "quantile"),
        ({"budget": -0.1}, "budget"),
        ({"budget": True}, "budget"),
        ({"least": 0}, "least must be more than 0, not 0"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ConfigError, match=message):
        Hedge(**options)


@pytest.mark.parametrize("value", [None, False, True, "auto", Hedge(quantile=0.99)])
def test_what_the_argument_may_be(value):
    Dispatcher([SimulatedDriver("a", 1.0)], hedge=value)


@pytest.mark.parametrize("value", [1, "yes", 0.5, {}])
def test_and_what_not(value):
    with pytest.raises(ConfigError, match="hedge must be None, True, 'auto' or a Hedge"):
        Dispatcher([SimulatedDriver("a", 1.0)], hedge=value)


# ---- what it costs while nothing is overdue


class UnknownSlow(Unknown, Slow):
    """Cannot say how long a call takes."""


@pytest.mark.parametrize("slow", [UnknownSlow, Slow])
@pytest.mark.parametrize("fast", [None, 0.001])
def test_time_alone_wakes_nobody(virtual, slow, fast):
    """One call goes on for long and is not overdue, and nothing else happens."""

    async def main():
        driver = slow("slow", 1e4)
        driver.side_effects = slow is UnknownSlow  # else it might hang, for all that is known
        async with Dispatcher([driver], hedge=EAGER) as d:
            stuck = asyncio.create_task(d.infer(0))
            await asyncio.sleep(1.0)
            if fast is not None:
                await d.add(Slow("fast", fast))
                assert await d.infer(1) == (1, "fast")
            passes = inside.count_passes(d)
            await asyncio.sleep(1000.0)
            assert not stuck.done()
            assert d.stats().hedging.started == 0
            stuck.cancel()
        return len(passes)

    assert virtual(main()) < 20


def test_a_call_is_overdue_though_its_device_became_known_while_it_ran(virtual):
    async def main():
        a, b = UnknownSlow("a", 1.0, {0: 500.0}, concurrency=2), Slow("b", 1.5)
        async with Dispatcher([a], hedge=EAGER) as d:
            stuck = asyncio.create_task(d.infer(0))
            assert await d.infer(1) == (1, "a")
            await d.add(b)
            assert await stuck == (0, "b")
            assert asyncio.get_running_loop().time() < 6.0

    virtual(main())


def test_a_call_overdue_while_alone_is_copied_once_another_device_comes(virtual):
    async def main():
        async with Dispatcher([Slow("a", 1.0, {0: 500.0})], hedge=EAGER) as d:
            stuck = asyncio.create_task(d.infer(0))
            await asyncio.sleep(30)
            await d.add(Slow("b", 1.0))
            assert await stuck == (0, "b")
            assert asyncio.get_running_loop().time() == 31.0

    virtual(main())
