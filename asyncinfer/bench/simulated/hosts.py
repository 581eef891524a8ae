"""Made-up devices that share made-up hosts, and which of them do most together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from asyncinfer.errors import ConfigError
from asyncinfer.registry import did_you_mean
from asyncinfer.testing import SimulatedHost

__all__ = ("Place", "Sharing", "parse_device", "parse_hosts", "sharings")

#: devices of one host, whose sets are all looked at
MAX_DEVICES = 16

_DEVICE = "write seconds, or seconds@HOST, or seconds@HOST:CORES, such as 0.02@pi:0.5"
_HOST = "write NAME:CORES, or NAME:CORES:CONTENTION, such as pi:2 or pi:2:0.1"


class Place(NamedTuple):
    """Where a device is, and what its calls want there."""

    host: SimulatedHost
    cores: float = 1.0


@dataclass(frozen=True)
class Sharing:
    """The devices of one host, by their places among all, and what they can do."""

    host: SimulatedHost
    devices: tuple[int, ...]
    #: those that do most together
    best: tuple[int, ...]
    #: tasks a second of the best, always busy
    rate: float
    #: tasks a second of all, always busy
    rate_of_all: float
    #: seconds that each of the best takes for a task, beside the others
    service_times: tuple[float, ...]


def sharings(times: Sequence[float], places: Sequence[Place | None]) -> list[Sharing]:
    """What the devices of each host can do, for their service times alone.

    At any moment the calls that run on a host do so many tasks a second as its speed and their
    service times say. So no schedule does more than the best set of devices, always busy.
    """
    hosts: dict[SimulatedHost, dict[int, float]] = {}
    for at, place in enumerate(places):
        if place is not None:
            hosts.setdefault(place.host, {})[at] = place.cores
    return [_sharing(host, times, cores) for host, cores in hosts.items()]


def _sharing(host: SimulatedHost, times: Sequence[float], cores: Mapping[int, float]) -> Sharing:
    if len(cores) > MAX_DEVICES:
        text = f"host {host.name!r} has {len(cores)} devices, more than {MAX_DEVICES}"
        raise ConfigError(text)

    def rate(devices: tuple[int, ...]) -> float:
        speed = host.speed(cores[at] for at in devices)
        return speed * math.fsum(1 / times[at] for at in devices)

    best = max(_sets(tuple(cores)), key=rate)
    speed = host.speed(cores[at] for at in best)
    shared = tuple(times[at] / speed for at in best)
    return Sharing(host, tuple(cores), best, rate(best), rate(tuple(cores)), shared)


def _sets(devices: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All sets of devices but the empty one, the smaller ones first."""
    for count in range(1, len(devices) + 1):
        yield from combinations(devices, count)


def parse_hosts(texts: Sequence[str]) -> dict[str, SimulatedHost]:
    """The hosts of ``NAME:CORES`` or ``NAME:CORES:CONTENTION``, by name."""
    hosts: dict[str, SimulatedHost] = {}
    for text in texts:
        name, *numbers = text.split(":")
        if not name or "@" in name or len(numbers) not in (1, 2):
            raise ConfigError(f"--host {text}: {_HOST}")
        if name in hosts:
            raise ConfigError(f"--host {text}: there is a host {name!r} already")
        cores, contention = [*(_number("--host", text, n, _HOST) for n in numbers), 0.0][:2]
        hosts[name] = SimulatedHost(cores, contention, name)
    return hosts


def parse_device(text: str, hosts: Mapping[str, SimulatedHost]) -> tuple[float, Place | None]:
    """Seconds, and a place on one of the ``hosts``, of ``T``, ``T@HOST`` or ``T@HOST:CORES``."""
    flag = "--service-times"
    seconds, at, place = text.partition("@")
    time = _number(flag, text, seconds, _DEVICE)
    if not (time > 0 and math.isfinite(time)):
        raise ConfigError(f"{flag}: give seconds above 0, not {time}")
    if not at:
        return time, None
    name, colon, cores = place.partition(":")
    if name not in hosts:
        remedy = did_you_mean(name, hosts) if hosts else f"add --host {name or 'NAME'}:CORES"
        raise ConfigError(f"{flag} {text}: unknown host {name!r}; {remedy}")
    wanted = _number(flag, text, cores, _DEVICE) if colon else 1.0
    if not (wanted >= 0 and math.isfinite(wanted)):
        raise ConfigError(f"{flag} {text}: give cores from 0, not {wanted}")
    return time, Place(hosts[name], wanted)


def _number(flag: str, text: str, number: str, remedy: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise ConfigError(f"{flag} {text}: {remedy}") from None
