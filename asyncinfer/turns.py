"""How lanes take turns, what a device reserves, and how long a batch waits to become fuller."""

from __future__ import annotations

import math
from collections.abc import Sequence

from asyncinfer.device import Device
from asyncinfer.lane import Lane

__all__ = ("locate", "pause_to_fill", "reservation")

#: seconds of its own service time that a device may reserve ahead
QUANTUM = 0.001
#: most tasks that it may reserve
BURST = 128


def locate(lanes: Sequence[Lane], offset: int) -> tuple[Lane, int]:
    """Where the waiting task at ``offset`` is, the lanes taking turns task by task."""
    left = [lane for lane in lanes if lane.waiting.tasks]
    level = 0
    while len(left) > 1:
        depth = min(lane.waiting.tasks for lane in left) - level
        if offset < depth * len(left):
            break
        offset -= depth * len(left)
        level += depth
        left = [lane for lane in left if lane.waiting.tasks > level]
    rounds, place = divmod(offset, len(left))
    return left[place], level + rounds


def reservation(device: Device, batch: int, share: float) -> int:
    """Tasks worth a quantum of the device's time, and no more than its ``share`` of what waits."""
    seconds = device.expect(batch)
    if not seconds < QUANTUM:
        return batch
    calls = min(QUANTUM / seconds, share / batch, BURST / batch)
    return batch * max(1, round(calls))


def pause_to_fill(device: Device, lanes: Sequence[Lane], now: float) -> float:
    """Seconds that ``device`` should wait for a fuller batch: none if no more may come."""
    lanes = [lane for lane in lanes if lane.waiting]
    if not any(_may_bring_more(lane) for lane in lanes):
        return 0.0
    oldest = min((next(iter(lane.waiting)).submitted for lane in lanes), default=-math.inf)
    return oldest + device.max_wait - now


def _may_bring_more(lane: Lane) -> bool:
    """Whether tasks may come into its window though none is finished."""
    draining = lane.window == math.inf
    return not (lane.ended or draining) and lane.admitted - lane.delivered < lane.window
