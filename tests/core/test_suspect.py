"""The states of a device: which follows which, who is told, and who is no longer trusted."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import Stalling, now

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.states import TRANSITIONS, IllegalTransition
from asyncinfer.errors import DeviceLost
from asyncinfer.stats import DeviceState
from asyncinfer.testing import SimulatedDriver

STATES = [state for state in DeviceState if state is not DeviceState.BUSY]


class Hangs(SimulatedDriver):
    """Its n-th call lasts ``seconds``; counts calls and probes. Its health is ``health``."""

    def __init__(self, name, service_time, nth, seconds, health=None, **options):
        super().__init__(name, service_time, **options)
        self.nth, self.seconds, self.health = nth, seconds, health
        self.calls = self.probes = self.opens = 0

    async def open(self):
        self.opens += 1
        await super().open()

    async def probe(self):
        self.probes += 1
        if isinstance(self.health, BaseException):
            raise self.health
        await asyncio.sleep(self.health or 0)

    async def infer(self, batch):
        self.calls += 1
        if self.calls == self.nth:
            await asyncio.sleep(self.seconds)
        return await super().infer(batch)


# ---- the table


class Told:
    """Remembers the changes of state it was told of."""

    def __init__(self):
        self.changes = []

    def changed(self, device):
        pass

    def became(self, device, before, error):
        self.changes.append((before, device.state))


def in_state(state, told):
    """A device that came there by a shortest way."""
    ways = [[DeviceState.OPENING]]
    while ways[0][-1] is not state:
        way = ways.pop(0)
        ways += [[*way, after] for after in TRANSITIONS[way[-1]]]
    device = Device(SimulatedDriver("a", 1.0), 0, told)
    for step in ways[0]:
        device.become(step, 0.0)
    return device


@pytest.mark.parametrize("after", STATES)
@pytest.mark.parametrize("before", STATES)
def test_only_the_transitions_of_the_table_are_possible(before, after):
    told = Told()
    device = in_state(before, told)
    told.changes.clear()
    if after in TRANSITIONS[before]:
        device.become(after, 1.0, "why")
        assert (device.state, device.since, device.reason) == (after, 1.0, "why")
        assert told.changes == [(before, after)]
    else:
        with pytest.raises(IllegalTransition, match=f"'a' cannot go from {before} to {after}"):
            device.become(after, 1.0)
        assert (device.state, told.changes) == (before, [])


def test_every_state_ends_and_can_be_reached():
    reached = {DeviceState.OPENING}.union(*(TRANSITIONS[state] for state in STATES))
    assert reached == set(STATES)
    for state in STATES[:-1]:
        assert TRANSITIONS[state] & {DeviceState.DRAINING, DeviceState.REMOVED}


@pytest.mark.parametrize("seed", range(8))
def test_the_events_of_a_device_follow_the_table(virtual, seed):
    rng = random.Random(seed)

    class Faulty(Hangs):
        async def open(self):
            if rng.random() < 0.2 and self.opens:
                raise DeviceLost(self.name, "not there")
            await super().open()

    async def run():
        events = []
        drivers = [
            Faulty(n, 0.1, rng.randint(2, 9), 3.0, fail=0.2, seed=seed, concurrency=2)
            for n in "abc"
        ]
        limits = Timeouts(run=2.0, close=1.0)
        options = {"retries": 50, "on_event": events.append, "timeout": limits}
        async with Dispatcher(drivers, **options) as d:
            stream = d.results(range(150))
            async for result in stream:
                if result.index == 50:
                    await d.add(SimulatedDriver("d", 0.1))
                if result.index == 100:
                    await d.remove("b")
                stats = {device.name: device for device in d.stats().devices}
                for name, device in stats.items():
                    last = [e for e in events if e.device == name and e.kind in kinds][-1]
                    state = "ready" if device.state == "busy" else device.state
                    assert (f"device.{state}", now() - last.time) == (
                        last.kind,
                        pytest.approx(device.state_seconds),
                    )
        return events

    kinds = {f"device.{state}" for state in STATES}
    events = [event for event in virtual(run()) if event.kind in kinds]
    for name in "abcd":
        own = [event for event in events if event.device == name]
        assert own[0].before == ""
        assert own[-1].kind == "device.removed"
        for one, other in pairwise(own):
            assert other.before == one.kind.removeprefix("device.")
            assert other.kind.removeprefix("device.") in TRANSITIONS[DeviceState(other.before)]
            assert other.reason or other.kind in ("device.opening", "device.ready")


# ---- suspicion


def test_a_device_that_is_silent_for_too_long_is_suspect_until_it_answers(virtual):
    async def run():
        events = []
        a = Hangs("a", 0.1, nth=5, seconds=20.0)
        async with Dispatcher([a], on_event=events.append) as d:
            assert [y async for y in d.stream(range(20))] == list(range(20))
            assert d.stats().devices[0].reason == "it answered"
        return [(e.kind, e.time, e.reason) for e in events if e.device and e.index < 0], a.probes

    events, probes = virtual(run())
    (_, at, reason), (_, again, _) = events[2:4]
    assert [kind for kind, _, _ in events] == [
        "device.opening", "device.ready", "device.suspect", "device.ready", "device.draining",
        "device.removed",
    ]  # fmt: skip
    assert at == pytest.approx(0.4 + 0.1 + 8 * 0.1, abs=0.11)
    assert reason.startswith("no answer for 0.9")
    assert again == pytest.approx(0.4 + 20.1)
    assert probes == 5, "after 0.9, 1.8, 3.6, 7.2 and 14.4 s"


def test_a_suspect_gets_no_more_calls(virtual):
    async def run():
        a, b = Hangs("a", 0.1, nth=2, seconds=50.0, concurrency=2), SimulatedDriver("b", 0.3)
        a.side_effects = True  # no copy answers for its calls
        async with Dispatcher([a, b], policy="greedy", timeout=Timeouts(run=None)) as d:
            stream = d.results(iter(int, 1), ordered=False)
            while now() < 1.0:
                await anext(stream)
            a.seconds, a.nth = 50.0, a.calls + 1  # from now on both calls hang
            while now() < 5.0:
                await anext(stream)
            assert d.stats().devices[0].state == "suspect"
            calls = a.calls
            while now() < 49.0:
                assert (await anext(stream)).device == "b"
            assert a.calls == calls
            while now() < 60.0:
                await anext(stream)
            assert d.stats().devices[0].state == "busy"
            await stream.aclose()

    virtual(run())


def test_a_device_whose_probe_fails_is_lost_and_its_task_moves(virtual):
    async def run():
        a = Hangs("a", 0.1, nth=5, seconds=1e5, health=ConnectionError("gone"))
        a.side_effects = True  # no copy answers for its calls
        async with Dispatcher([a, SimulatedDriver("b", 0.2)]) as d:
            got = [r async for r in d.results(range(50))]
            assert [r.value for r in got] == list(range(50))
            assert [str(c) for r in got for c in ([] if r.attempts == 1 else [r.attempts])] == ["2"]
            assert now() < 6
            await asyncio.sleep(5)
            assert a.opens == 2

    virtual(run())


@pytest.mark.parametrize(
    "health", [1e5, None, ZeroDivisionError("a bug"), asyncio.CancelledError()]
)
def test_a_probe_that_says_nothing_changes_nothing(virtual, health, caplog):
    async def run():
        a = Hangs("a", 0.1, nth=5, seconds=60.0, health=health)
        a.side_effects = True  # no copy answers for its calls
        async with Dispatcher([a, SimulatedDriver("b", 0.2)], timeout=Timeouts(close=1)) as d:
            assert [y async for y in d.stream(range(50))] == list(range(50))
            assert now() > 60, "nothing else would be known of the call"
            assert d.stats().devices[0].errors == 0
            assert a.opens == 1
            assert a.probes > 1, "it is asked again"

    virtual(run())


def test_copies_do_not_hide_that_a_device_is_silent(virtual):
    """Each of its calls is given up once a copy has the result, before it is silent for long."""

    class Frozen(Hangs):
        async def infer(self, batch):
            if self.calls >= self.nth:
                await asyncio.Event().wait()
            return await super().infer(batch)

    async def run():
        a = Frozen("a", 0.1, nth=20, seconds=0.0, health=ConnectionError("gone"))
        b = SimulatedDriver("b", 0.1)
        async with Dispatcher([a, b], hedge=Hedge(budget=1.0)) as d:
            async for result in d.results(iter(int, 1)):
                last = result.index
                if a.probes or now() > 60:
                    break
            assert last > 30
            assert now() < 10
            assert (a.probes, d.stats().hedging.won > 1) == (1, True)

    virtual(run())


@pytest.mark.parametrize("noise", [0.3, 0.5])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_noise_raises_no_suspicion(virtual, noise, concurrency):
    async def run():
        events = []
        drivers = [
            SimulatedDriver(str(t), t, noise=noise, concurrency=concurrency)
            for t in (0.1, 0.5, 2.0)
        ]
        async with Dispatcher(drivers, on_event=events.append) as d:
            async for _ in d.stream(range(3000)):
                pass
        return [event for event in events if event.kind == "device.suspect"]

    assert virtual(run()) == []


def test_a_heavy_tail_is_learnt(virtual):
    """One call in 50 takes 20 times as long: soon that is nothing unusual."""

    async def run():
        events = []
        async with Dispatcher([Stalling("a", 0.5, chance=0.02)], on_event=events.append) as d:
            async for _ in d.stream(range(2000)):
                pass
        return [event for event in events if event.kind == "device.suspect"]

    assert len(virtual(run())) <= 4, "of 40 such calls"


def test_the_page_about_devices_has_the_same_table():
    page = Path(__file__).parents[2].joinpath("docs", "devices.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    states = [row for row in rows if len(row) == 3]
    table = {
        re.findall(r"`(\w+)`", row[0])[0]: set(re.findall(r"`(\w+)`", row[2])) for row in states
    }
    assert table == {str(state): set(TRANSITIONS[state]) for state in STATES}
