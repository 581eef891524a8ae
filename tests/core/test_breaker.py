"""How long failed devices are held off, and what they may do once they are back."""

from __future__ import annotations

import asyncio

import pytest
from fakes import now

from asyncinfer import Dispatcher
from asyncinfer._core.devices.breaker import (
    FIRST_PAUSE,
    FORGIVEN,
    LONGEST_PAUSE,
    MOST_LOSSES,
    Breaker,
)
from asyncinfer.errors import DeviceLost
from asyncinfer.testing import SimulatedDriver


class Flapping(SimulatedDriver):
    """Opens well, and is lost at every n-th call while it is ``bad``; knows when it was opened."""

    def __init__(self, name, service_time, every, **options):
        super().__init__(name, service_time, **options)
        self.every = every
        self.bad = True
        self.back = asyncio.Event()
        self.calls = 0
        self.opened_at, self.lost_at, self.sizes = [], [], []
        self.at_once = self.most_at_once = 0

    async def open(self):
        await super().open()
        self.opened_at.append(now())
        if not self.bad:
            self.back.set()
        self.calls = self.at_once = self.most_at_once = 0
        self.sizes = []

    async def infer(self, batch):
        self.calls += 1
        self.sizes.append(len(batch))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        call = self.calls
        outputs = await super().infer(batch)
        self.at_once -= 1
        if self.bad and call >= self.every:
            self.lost_at.append(now())
            raise DeviceLost(self.name, "again")
        return outputs

    @property
    def pauses(self):
        return [o - c for c, o in zip(self.lost_at, self.opened_at[1:], strict=False)]


async def read(stream, until):
    async for _ in stream:
        if now() > until:
            return


# ---- the breaker by itself


def test_pauses_double_from_the_first_to_the_longest_and_are_jittered():
    breaker, other = Breaker("a"), Breaker("b")
    earned = FIRST_PAUSE
    pauses = []
    for _ in range(14):
        breaker.not_opened()
        other.not_opened()
        pauses.append(breaker.pause())
        assert 0.5 * earned <= pauses[-1] <= earned
        assert other.pause() != pauses[-1], "two devices do not come back at the same moment"
        earned = min(LONGEST_PAUSE, 2 * earned)
    again = Breaker("a")
    for pause in pauses:
        again.not_opened()
        assert again.pause() == pause, "the same seed, the same run"


def test_losses_are_forgiven_by_time_in_service_and_not_by_one_answer():
    breaker = Breaker("a")
    for count in range(1, 4):
        breaker.opened(100.0)
        breaker.lost(100.001)
        assert breaker.failures(0.0) == count
    breaker.opened(200.0)
    assert [breaker.failures(200 + s) for s in (0, 0.5, FORGIVEN + 0.1, 3 * FORGIVEN)] == [
        3,
        3,
        2,
        0,
    ]
    breaker.lost(200 + 3 * FORGIVEN)
    assert breaker.failures(0.0) == 1
    assert not breaker.half_open
    for _ in range(100):
        breaker.opened(0.0)
        breaker.lost(0.0)
    assert breaker.failures(0.0) == MOST_LOSSES, "so that it can be forgiven in time"


def test_an_outage_counts_as_one_loss_once_it_is_over():
    breaker = Breaker("a")
    breaker.opened(0.0)
    breaker.lost(100.0)
    for _ in range(12):
        breaker.not_opened()
    assert breaker.failures(0.0) == 13
    assert breaker.pause() >= LONGEST_PAUSE / 2
    breaker.opened(1000.0)
    assert breaker.failures(0.0) == 1
    assert not breaker.half_open, "what had failed was to open it, and it opened"


# ---- in a dispatcher


def test_a_flapping_device_is_held_off_longer_and_longer_though_it_answers_between(virtual):
    async def run():
        bad, good = Flapping("bad", 0.05, every=4), SimulatedDriver("good", 0.05)
        async with (
            Dispatcher([bad, good], retries=100) as d,
            d.stream(iter(int, 1)) as stream,
        ):
            await read(stream, 100.0)
            share = sum(device.tasks for device in d.stats().devices[1:])
            return bad.pauses, share, len(bad.lost_at)

    pauses, by_the_good, losses = virtual(run())
    assert pauses[0] <= FIRST_PAUSE + 0.001
    assert all(later > earlier for earlier, later in zip(pauses[:7:2], pauses[2:9:2], strict=True))
    assert max(pauses) > 10
    assert losses < 16, "without it, several hundred"
    assert by_the_good > 1900, "the healthy one is not held up"


def test_a_device_that_serves_well_again_is_forgiven(virtual):
    async def run():
        bad, good = Flapping("bad", 0.05, every=4), SimulatedDriver("good", 0.05)
        async with (
            Dispatcher([bad, good], retries=100) as d,
            d.stream(iter(int, 1)) as stream,
        ):
            await read(stream, 5.0)
            before = d.stats().devices[0].failures
            bad.bad = False
            await read(stream, 120.0)
            assert d.stats().devices[0].failures == 0
            bad.bad, bad.calls, losses = True, 0, len(bad.lost_at)
            await read(stream, 120.5)
            return before, bad.pauses[losses]

    before, pause = virtual(run())
    assert before >= 4
    assert pause <= FIRST_PAUSE + 0.001


def test_a_device_that_failed_repeatedly_gets_one_task_first(virtual):
    async def run():
        seen = []
        bad = Flapping("bad", 0.1, every=3, max_batch=4, concurrency=2)
        drivers = [bad, SimulatedDriver("good", 0.1)]

        def hook(event):
            if event.device == "bad" and event.kind.startswith("device."):
                seen.append((event.kind, list(bad.sizes), bad.most_at_once))

        async with (
            Dispatcher(drivers, policy="greedy", retries=100, on_event=hook) as d,
            d.stream(iter(int, 1)) as stream,
        ):
            await read(stream, 20.0)
        return seen

    seen = virtual(run())
    kinds = [kind for kind, _, _ in seen]
    assert kinds[:5] == [
        "device.opening", "device.ready", "device.lost", "device.backing_off", "device.opening"
    ]  # fmt: skip
    assert kinds[5] == "device.ready", "after one loss it is trusted at once"
    trials = [n for n, kind in enumerate(kinds) if kind == "device.suspect"]
    assert len(trials) >= 2
    for n in trials:
        kind, sizes, at_once = seen[n + 1]
        assert kind == "device.ready"
        assert (sizes, at_once) == ([1], 1), "one task, until it has answered"


def test_a_probe_that_fails_on_trial_is_a_failed_opening(virtual):
    class Ill(Flapping):
        probes = 0

        async def probe(self):
            self.probes += 1
            if self.probes <= 2:
                raise DeviceLost(self.name, "not well yet")

    async def run():
        bad, good = Ill("bad", 0.1, every=1), SimulatedDriver("good", 0.1)
        async with (
            Dispatcher([bad, good], policy="greedy", retries=100) as d,
            d.stream(iter(int, 1)) as stream,
        ):
            await read(stream, 2.0)
        assert bad.probes >= 3
        assert len(bad.opened_at) - len(bad.lost_at) in (2, 3), "two openings came to nothing"

    virtual(run())


@pytest.mark.parametrize("alone", [True, False])
def test_no_device_is_held_off_for_long_while_none_is_up(virtual, alone):
    async def run():
        bad, other = Flapping("bad", 0.1, every=1), SimulatedDriver("other", 0.1)
        async with (
            Dispatcher([bad, other], policy="greedy", retries=10**6) as d,
            d.stream(iter(int, 1)) as stream,
        ):
            await read(stream, 60.0)
            bad.bad, asked = False, now()
            if alone:
                await d.remove("other")
            later = asyncio.create_task(read(stream, 60.0 + 60.0))
            await bad.back.wait()
            later.cancel()
            await asyncio.wait([later])
            return now() - asked, bad.opened_at[-1] - bad.lost_at[-1]

    waited, pause = virtual(run())
    if alone:
        assert waited <= 1.1
    else:
        assert pause > 10
