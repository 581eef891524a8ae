"""A device that is up and given nothing: what a policy says of it reaches stats, events and log."""

from __future__ import annotations

import asyncio

from fakes import Noting
from inside import devices

from asyncinfer import Dispatcher
from asyncinfer.scheduling import Grant

WHY = "35,300 tasks/s with it, 44,700 without"


class Resting:
    """Has the devices at these positions rest."""

    reserves = False

    def __init__(self, *positions):
        self.positions = positions

    def pull(self, device, pool):
        if device.position in self.positions:
            device.rest(WHY)
            return None
        return Grant(0, 1)


def test_a_device_that_rests_says_so_and_takes_part_again(virtual):
    async def run():
        events, policy = [], Resting(1)
        drivers = [Noting("a"), Noting("b")]
        async with Dispatcher(drivers, policy=policy, on_event=events.append) as d:
            assert [device.rests for device in d.stats().devices] == [None, None]
            assert {r.device async for r in d.results(range(10))} == {"a"}
            a, b = d.stats().devices
            assert (a.rests, b.rests, b.up, str(b.state)) == (None, WHY, True, "ready")
            policy.positions = ()
            (device,) = [device for device in devices(d) if device.rests]
            device.take_part("a is slower now")
            assert {r.device async for r in d.results(range(10))} == {"a", "b"}
            assert [device.rests for device in d.stats().devices] == [None, None]
        told = [e for e in events if e.kind in ("device.rests", "device.takes_part")]
        assert [(e.kind, e.device, e.reason, e.before) for e in told] == [
            ("device.rests", "b", WHY, ""),
            ("device.takes_part", "b", "a is slower now", ""),
        ]

    virtual(run())


def test_only_a_device_that_is_up_rests(virtual):
    async def run():
        events = []
        b = Noting("b", fail=lambda x: b.opens == 1)
        drivers = [Noting("a"), b]
        async with Dispatcher(drivers, policy=Resting(), on_event=events.append) as d:
            device = devices(d)[1]
            device.rest(WHY)
            device.rest("another figure, no other event")
            assert d.stats().devices[1].rests == "another figure, no other event"
            assert [y async for y in d.stream(range(4))] == list(range(4))
            await asyncio.sleep(1)
            assert d.stats().devices[1].rests is None
        kinds = [e.kind for e in events if e.device == "b" and e.index == -1]
        assert kinds[2:5] == ["device.rests", "device.lost", "device.takes_part"]

    virtual(run())
