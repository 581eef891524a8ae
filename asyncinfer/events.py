"""Events that a dispatcher reports to ``on_event``: for metrics, traces and timelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ("Event", "EventHook", "EventKind")

#: what can happen. The events of a device are named after the state it has come into, except for
#: ``device.wedged``: a call was left behind on it, which goes on though it was cancelled; and
#: ``device.rests`` and ``device.takes_part``: it is up, and given nothing from now on, or is again
EventKind = Literal[
    "device.opening",
    "device.ready",
    "device.suspect",
    "device.distrusted",
    "device.lost",
    "device.backing_off",
    "device.draining",
    "device.removed",
    "device.wedged",
    "device.rests",
    "device.takes_part",
    "task.finished",
    "task.retried",
    "task.hedged",
    "task.quarantined",
    "task.failed",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. Times are seconds on the event loop's clock."""

    #: what happened
    kind: EventKind
    #: when
    time: float
    #: the device's name; empty if no device was involved
    device: str = ""
    #: the task's index in its stream; -1 for events of a device
    index: int = -1
    #: number of the task's stream, in the order the streams began; 0 is ``infer``
    stream: int = -1
    #: when the task was started on the device
    started: float = float("nan")
    #: what went wrong
    error: BaseException | None = None
    #: the state the device was in before; empty if the event is no change of state, or the first
    before: str = ""
    #: why the device changed its state, or rests or takes part, in words
    reason: str = ""


#: A function that is called with every event, synchronously on the event loop, so it should be
#: short. What it raises is logged, the first time, and ignored; ``SystemExit`` ends the event loop.
EventHook = Callable[[Event], object]
