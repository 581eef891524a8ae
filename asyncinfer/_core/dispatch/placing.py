"""Where tasks that failed are run again: on the device that is done with them first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from asyncinfer._core.devices.device import Device

__all__ = ("Place", "idle_and_fast_first", "place")

#: two moments that differ by less than this part of a call are taken as the same
TIE = 1e-6


class Place(NamedTuple):
    """A free device, and how many of the tasks it leaves to others that do them sooner."""

    device: Device
    skip: int


def place(able: Sequence[Device], tasks: int, now: float, *, shares: bool) -> Place | None:
    """The free device that is to run the next of so many ``tasks``, if it need not be waited for.

    It is the rule of the earliest finish: a device leaves to the others what they will have done
    before it could be done with one task, though they are busy now. ``shares`` says whether tasks
    are run in batches. A device of unknown speed may be quick, and leaves nothing to others.
    """
    free = sorted((device for device in able if device.free), key=idle_and_fast_first)
    for device in free:
        skip = _done_before(device, able, now, shares=shares)
        if skip < tasks:
            return Place(device, skip)
    return None


def _done_before(device: Device, able: Sequence[Device], now: float, *, shares: bool) -> int:
    """How many tasks the quicker devices have done before this one could be done with one."""
    late = device.quickest
    if late == math.inf:
        return 0
    late, done = late * (1 + device.deviation), 0
    for other in able:
        if other.quickest * (1 + other.deviation) < late and other is not device:
            left = late * (1 - TIE) - other.free_in(now)
            done += _done_in(left, other, shares=shares)
    return done


def _done_in(seconds: float, device: Device, *, shares: bool) -> int:
    """How many tasks the device does in so many seconds."""
    if seconds <= 0:
        return 0
    if not shares:
        return int(seconds / device.quickest)
    calls = int(seconds / device.latency)
    if calls:
        return calls * device.batch_limit
    return device.batch_within(seconds) if device.max_batch > 1 else 0


def idle_and_fast_first(device: Device) -> tuple[bool, float]:
    """What free devices are sorted by: those that run nothing first, and of these the quickest."""
    return len(device.bursts) > 0, device.quickest
