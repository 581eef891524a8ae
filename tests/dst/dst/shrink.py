"""From a schedule that breaks a promise to a smaller one that breaks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import chain
from typing import Any

from dst.schedule import DevicePlan, Schedule, Settings

__all__ = ("shrunk",)

#: most schedules tried
MOST = 400


def shrunk(schedule: Schedule, breaks: Callable[[Schedule], bool], most: int = MOST) -> Schedule:
    """Leave out and simplify whatever is not needed for ``breaks`` to hold.

    Delta debugging: steps are left out by halves, quarters and so on down to single ones, then
    devices, then everything that is not as by default, until nothing more can be.
    """
    tries = iter(range(most))

    def still(smaller: Schedule) -> bool:
        return next(tries, None) is not None and breaks(smaller)

    before = None
    while before != schedule:
        before = schedule
        schedule = _fewer_steps(schedule, still)
        for smaller in list(_simpler(schedule)):
            candidate = smaller(schedule)
            if candidate is not None and candidate != schedule and still(candidate):
                schedule = candidate
    return schedule


def _fewer_steps(schedule: Schedule, still: Callable[[Schedule], bool]) -> Schedule:
    size = len(schedule.steps)
    while size:
        at = 0
        while at < len(schedule.steps):
            steps = (*schedule.steps[:at], *schedule.steps[at + size :])
            if still(candidate := schedule.but(steps=steps)):
                schedule = candidate
            else:
                at += size
        size //= 2
    return schedule


Simplify = Callable[[Schedule], Schedule | None]


def _simpler(schedule: Schedule) -> Iterator[Simplify]:
    """Ways to make a schedule simpler; each is asked with what the ones before have left."""
    for at in reversed(range(len(schedule.devices))):
        yield lambda s, at=at: _without_device(s, at)
    for field in fields(Settings):
        yield lambda s, name=field.name: s.but(settings=_default(s.settings, name))
    for at in range(len(schedule.devices)):
        for field in fields(DevicePlan)[1:]:
            yield lambda s, at=at, name=field.name: _device(s, at, name)
    for at, step in enumerate(schedule.steps):
        for field in fields(step):
            if field.name not in ("device", "kind"):
                yield lambda s, at=at, name=field.name: _step(s, at, name)
        for tasks in (1, 2, 3, 5):
            yield lambda s, at=at, tasks=tasks: _tasks(s, at, tasks)


def _without_device(schedule: Schedule, at: int) -> Schedule | None:
    devices = schedule.devices
    if len(devices) == 1 or at >= len(devices):
        return None
    gone = devices[at].name
    steps = tuple(step for step in schedule.steps if getattr(step, "device", "") != gone)
    return schedule.but(devices=(*devices[:at], *devices[at + 1 :]), steps=steps)


def _default(of: Any, name: str) -> Any:
    default = next(field.default for field in fields(of) if field.name == name)
    return replace(of, **{name: default})


def _device(schedule: Schedule, at: int, name: str) -> Schedule | None:
    if at >= len(schedule.devices):
        return None
    return schedule.but(devices=_put(schedule.devices, at, _default(schedule.devices[at], name)))


def _step(schedule: Schedule, at: int, name: str) -> Schedule | None:
    if at >= len(schedule.steps) or not hasattr(schedule.steps[at], name):
        return None
    return schedule.but(steps=_put(schedule.steps, at, _default(schedule.steps[at], name)))


def _tasks(schedule: Schedule, at: int, tasks: int) -> Schedule | None:
    step = schedule.steps[at] if at < len(schedule.steps) else None
    if step is None or not 0 < tasks < getattr(step, "tasks", 0):
        return None
    return schedule.but(steps=_put(schedule.steps, at, replace(step, tasks=tasks)))  # type: ignore[call-arg]


def _put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return tuple(chain(items[:at], (item,), items[at + 1 :]))
