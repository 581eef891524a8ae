"""Devices that fail tasks: told from tasks that fail, held back, tried again, harmless."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import inside
import pytest
from fakes import Noting, now

from asyncinfer import Dispatcher
from asyncinfer._core.devices.record import BROKEN, IN_A_ROW, SURE, TOLERATED, likely_worse
from asyncinfer.errors import DeviceLost, TaskError
from asyncinfer.testing import SimulatedDriver


class Failing(Noting):
    """From its n-th call on, and for so many, it fails a ``share`` of its tasks, at once.

    ``how``: an error in the "place" of an output, or the call "raises" if any of its tasks fails.
    """

    def __init__(self, name, service_time, share=1.0, after=0, calls=10**9, how="place", **options):
        super().__init__(name, service_time, **options)
        self.share, self.after, self.calls, self.how = share, after, calls, how
        self.chance = random.Random(42)
        self.failed = 0

    async def work(self, batch):
        number = len(self.batches)
        fails = self.after < number <= self.after + self.calls
        bad = [fails and self.chance.random() < self.share for _ in batch]
        self.failed += sum(bad)
        if any(bad) and self.how == "raises":
            raise ValueError("defect")
        if not all(bad):
            await super().work(batch)
        return [ValueError("defect") if b else x for b, x in zip(bad, batch, strict=True)]


def good(name="good"):
    """Batches of 32."""
    return SimulatedDriver(name, 0.001, batch_cost=0.02, max_batch=32)


async def job(drivers, tasks=600, **options):
    """Seconds of a whole stream, how many tasks failed for good, the statistics, and the events."""
    events = []
    begun = now()
    async with Dispatcher(drivers, on_event=events.append, **options) as d:
        results = [r async for r in d.results(range(tasks))]
        lost = sum(r.error is not None for r in results)
        assert [r.index for r in results] == list(range(tasks))
        assert all(r.value == r.index for r in results if r.error is None)
        return now() - begun, lost, d.stats(), events


@pytest.fixture
def alone(virtual):
    """How long the good device takes alone for 600 tasks."""
    return virtual(job([good()]))[0]


FORMS = [("place", 1), ("place", 32), ("raises", 1), ("raises", 32)]


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize(("how", "batch"), FORMS)
def test_a_broken_device_costs_next_to_nothing(virtual, alone, how, batch, retries):
    broken = Failing("bad", 0.001, batch_cost=0.001, max_batch=batch, how=how)
    seconds, lost, stats, events = virtual(job([good(), broken], retries=retries))
    assert seconds <= 1.05 * alone
    assert lost <= (retries == 0), "without retries it is not known of the first"
    assert len(broken.batches) < 10
    device = stats.devices[1]
    assert (device.state, device.up) == ("distrusted", True)
    assert device.faults >= IN_A_ROW
    assert "worked elsewhere" in device.reason
    assert 0 < device.next_trial < 30
    kinds = [event.kind for event in events if event.device == "bad" and event.index < 0]
    assert kinds[:3] == ["device.opening", "device.ready", "device.distrusted"]


@pytest.mark.parametrize("after", [0, 6])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize(("how", "batch"), FORMS)
def test_with_a_flaky_device_a_stream_is_no_slower(virtual, alone, how, batch, share, after):
    flaky = Failing("bad", 0.001, share, after, how=how, batch_cost=0.01, max_batch=batch)
    seconds, lost, _, _ = virtual(job([good(), flaky]))
    assert lost == 0
    assert seconds <= 1.02 * alone


def test_what_a_flaky_device_does_is_worth_its_failures(virtual, alone):
    flaky = Failing("bad", 0.001, 0.2, batch_cost=0.02, max_batch=32)
    seconds, lost, stats, _ = virtual(job([good(), flaky]))
    assert (lost, stats.devices[1].state) == (0, "ready")
    assert seconds < 0.7 * alone, "its failures are run in the good one's batches"


def test_a_device_that_is_well_again_is_trusted_again(virtual):
    broken = Failing("bad", 0.01, after=50, calls=10)  # 3 at once, and the others on trial

    async def run():
        return await job([SimulatedDriver("good", 0.01), broken], 5000)

    _, lost, stats, events = virtual(run())
    assert lost == 0
    changes = [(e.kind, e.before) for e in events if e.device == "bad" and e.index < 0]
    assert changes[2:4] == [("device.distrusted", "ready"), ("device.ready", "distrusted")]
    assert stats.devices[1].tasks > 400
    failed = [e.time for e in events if e.kind == "task.retried"]
    pauses = [y - x for x, y in pairwise(failed[IN_A_ROW:])]
    assert len(pauses) == 6
    assert all(y > 1.5 * x for x, y in pairwise(pauses)), "it is tried ever less often"


def test_a_trial_is_one_task_and_the_good_device_takes_it_at_once(virtual):
    broken = Failing("bad", 0.001, batch_cost=0.001, max_batch=32)
    _, _, _, events = virtual(job([good(), broken], 3000))
    assert all(len(batch) == 1 for batch in broken.batches[2:])
    retried = [e for e in events if e.kind == "task.retried" and e.time > 0.1]
    starts = {e.index: e.started for e in events if e.kind == "task.finished"}
    assert retried
    assert all(starts[e.index] - e.time < 0.06 for e in retried), "with its next call"


def test_bad_inputs_discredit_no_device(virtual):
    def bad(x):
        return ValueError("bad") if x % 10 == 3 else None

    async def run():
        drivers = [SimulatedDriver(n, 0.01, fail=bad) for n in "abc"]
        return await job(drivers, 1000)

    seconds, lost, stats, events = virtual(run())
    assert lost == 100
    assert stats.retried == 200
    assert {e.kind for e in events if e.device in "abc" and e.index < 0} <= {
        "device.opening", "device.ready", "device.draining", "device.removed"
    }  # fmt: skip
    assert seconds <= (1000 + 200) * 0.01 / 3 * 1.02, "they cost their retries"


def test_where_every_input_is_bad_none_is_held_back(virtual):
    drivers = [SimulatedDriver(n, 0.01, fail=lambda x: ValueError("bad")) for n in "ab"]
    seconds, lost, stats, _ = virtual(job(drivers, 300))
    assert lost == 300
    assert seconds <= 300 * 3 * 0.01 / 2 * 1.2
    assert {device.state for device in stats.devices} <= {"ready", "busy"}


def test_a_device_alone_is_never_held_back(virtual):
    broken = Failing("bad", 0.01, after=0, calls=20)
    seconds, lost, stats, _ = virtual(job([broken], 100, retries=2))
    assert 0 < lost <= 20 / 3 + 1
    assert stats.devices[0].tasks >= 90
    assert seconds < 1.1


@pytest.mark.parametrize("away", [0.5, 3.0])
def test_it_waits_a_moment_for_a_good_device_that_was_lost(virtual, away):
    class Unplugged(SimulatedDriver):
        async def open(self):
            if now() > 0.4:
                await asyncio.sleep(away)
            await super().open()

        async def infer(self, batch):
            outputs = await super().infer(batch)
            if 0.4 < now() < 0.5:
                raise DeviceLost("good", "unplugged")
            return outputs

    broken = Failing("bad", 0.001)
    _, lost, _, _ = virtual(job([Unplugged("good", 0.01), broken], 200))
    assert (lost == 0) is (away < 1)


def test_a_silent_device_is_not_waited_for_for_ever(virtual):
    class Hangs(SimulatedDriver):
        async def infer(self, batch):
            if 30 in batch:
                await asyncio.sleep(1e5)
            return await super().infer(batch)

    async def run():
        shaky = Failing("shaky", 0.01, calls=4)
        async with Dispatcher([Hangs("good", 0.01), shaky]) as d:
            stream = d.results(range(100), ordered=False)
            got = [await anext(stream) for _ in range(99)]
            assert now() < 20
            await stream.aclose()
            return got

    assert all(r.error is None for r in virtual(run()))


def test_a_last_attempt_waits_for_a_good_device(virtual):
    """Though the bad one is free, and the good one's call takes long."""

    async def run():
        bad = Failing("bad", 0.001, 0.5)
        slow = SimulatedDriver("good", 1.0)
        async with Dispatcher([slow, bad], retries=1, policy="greedy") as d:
            results = [r async for r in d.results(range(200))]
        assert [r for r in results if r.error] == []
        assert all(r.attempts == 1 or r.device == "good" for r in results)

    virtual(run())


def test_without_retries_what_a_bad_device_fails_does_not_count(virtual):
    async def run():
        bad = Failing("bad", 0.01, after=5)
        async with Dispatcher([SimulatedDriver("good", 0.01), bad], retries=0) as d:
            return [r async for r in d.results(range(300))]

    results = virtual(run())
    lost = [r for r in results if r.error]
    assert len(lost) == 1, "the first: until then there was nothing against the device"
    assert (type(lost[0].error), lost[0].attempts) == (TaskError, 1)
    again = [r for r in results if r.device == "good" and r.error is None]
    assert {r.attempts for r in again} == {1}


def test_a_failed_call_teaches_no_speed(virtual):
    async def run():
        bad = Failing("bad", 0.05, after=3)
        async with Dispatcher([bad]) as d:
            [r async for r in d.results(range(50))]
            return d.stats().devices[0]

    assert virtual(run()).service_time == pytest.approx(0.05)


def test_many_failed_tasks_cost_a_pass_no_more_than_few(virtual):
    """A search for each of 2000 would be 2000 searches a pass."""

    async def run():
        searches = 0
        bad = Failing("bad", 0.0001, 1.0, concurrency=1, max_batch=1024)
        async with Dispatcher([SimulatedDriver("good", 0.001), bad], window=2000) as d:
            retries = inside.engine(d).retries
            search = retries._device_for

            def counted(*arguments):
                nonlocal searches
                searches += 1
                return search(*arguments)

            retries._device_for = counted
            assert [y async for y in d.stream(range(2000))] == list(range(2000))
        return searches

    assert virtual(run()) < 3 * 2000


def test_a_rerun_that_fails_elsewhere_too_is_the_inputs_fault(virtual):
    class Stacks(Noting):
        async def work(self, batch):
            await super().work(batch)
            if any(x % 50 == 7 for x in batch):
                raise ValueError("one of them")
            return batch

    drivers = [Stacks(n, 0.001, batch_cost=0.02, max_batch=16) for n in "ab"]
    _, lost, stats, _ = virtual(job(drivers, 1000, retries=1))
    assert lost == 20
    assert {device.state for device in stats.devices} == {"ready"}
    both = [b for d in drivers for b in d.batches if len(b) > 1 and any(x % 50 == 7 for x in b)]
    assert len(both) <= 20 + 3, "later ones are run one by one at once"


def test_the_rule():
    assert likely_worse(IN_A_ROW, 0) >= SURE > likely_worse(IN_A_ROW - 1, 0)
    assert TOLERATED**BROKEN < 0.001
    assert likely_worse(0, 0) == pytest.approx(1 - TOLERATED)
    assert likely_worse(20, 80) < 0.2
    assert likely_worse(50, 50) > 0.999
