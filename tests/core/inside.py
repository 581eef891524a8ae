"""What tests ask of the inside of an open dispatcher: the one place that knows of it."""

from __future__ import annotations

from typing import Any

from asyncinfer import Dispatcher
from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.engine import Engine
from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.turns import Claim
from asyncinfer.stream import Stream


def engine(dispatcher: Dispatcher[Any, Any]) -> Engine:
    """What runs while the dispatcher is open."""
    found = dispatcher._engine
    assert found is not None
    return found


def devices(dispatcher: Dispatcher[Any, Any]) -> list[Device]:
    """Those that have not left."""
    return list(engine(dispatcher).roster.devices)


def bursts(dispatcher: Dispatcher[Any, Any]) -> list[Burst]:
    """Those that run now."""
    return list(engine(dispatcher).roster.bursts)


def lanes(dispatcher: Dispatcher[Any, Any]) -> list[Lane]:
    """Those of streams that have not ended, and that of ``infer``."""
    return list(engine(dispatcher).lanes)


def lane_of(stream: Stream[Any]) -> Lane:
    """The tasks of one stream."""
    return stream._lane


def look(dispatcher: Dispatcher[Any, Any]) -> None:
    """Look now which devices are silent for too long."""
    engine(dispatcher).supervisor.watchdog._look()


def count_passes(dispatcher: Dispatcher[Any, Any]) -> list[None]:
    """One item from now on for each time devices and tasks are brought together."""
    inside, passes = engine(dispatcher), []
    assign = inside._assign

    def counted() -> None:
        passes.append(None)
        assign()

    inside._assign = counted
    return passes


def flows(dispatcher: Dispatcher[Any, Any]) -> set[Claim]:
    """The claims whose calls have a place among those who take turns."""
    return {flow.claim for flow in engine(dispatcher).calls.waiting.flows}


def turns(dispatcher: Dispatcher[Any, Any]) -> int:
    """How many have such a place, besides the classes of priority."""
    classes = engine(dispatcher).lanes._turns._classes.values()
    return sum(1 for group in classes for _ in group.everybody())
