"""Devices that share hosts, in some of the schedules."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from dst.schedule import Add, Cores, DevicePlan, Schedule, Step

__all__ = ("hosted",)

#: schedules whose devices are on hosts
SHARE = 0.35
HOSTS = ("h0", "h0", "h0", "h1", "")
CLAIMS = (None, None, None, "", "bus")


def hosted(schedule: Schedule, chance: Random) -> Schedule:
    """The same schedule, in some cases with its devices on hosts whose cores change now and then.

    Devices that share nothing may say that they do, and those that do may keep it to themselves.
    """
    if chance.random() >= SHARE:
        return schedule
    horizon = max((step.at for step in schedule.steps), default=0.0)
    changes = [
        Cores(chance.random() * horizon, chance.choice(HOSTS[:4]), chance.choice((0.5, 1.0, 3.0)))
        for _ in range(chance.choice((0, 0, 1, 2, 4)))
    ]
    settings = replace(
        schedule.settings,
        cores=chance.choice((1.0, 2.0, 4.0)),
        contention=chance.choice((0.0, 0.0, 0.2)),
    )
    devices = tuple(_placed(device, chance) for device in schedule.devices)
    steps = (*(_step(step, chance) for step in schedule.steps), *changes)
    return Schedule(settings, devices, steps)


def _step(step: Step, chance: Random) -> Step:
    return replace(step, device=_placed(step.device, chance)) if isinstance(step, Add) else step


def _placed(device: DevicePlan, chance: Random) -> DevicePlan:
    return replace(
        device,
        host=chance.choice(HOSTS),
        cores=chance.choice((0.05, 0.5, 1.0, 1.0, 2.0)),
        claims=chance.choice(CLAIMS),
    )
