"""The attributes of a driver, read and checked."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from asyncinfer.driver import Driver, shared_names
from asyncinfer.errors import ConfigError

__all__ = ("Attributes", "attributes_of", "mixed")


class Attributes(NamedTuple):
    """The attributes of a driver that the dispatcher uses."""

    name: str
    max_batch: int
    concurrency: int
    #: seconds a task may wait for a fuller batch
    max_wait: float
    #: seconds one call should take at most
    latency_target: float | None
    #: whether its answers depend on what came before, so that a stream has to stay on it
    stateful: bool
    #: names of what it shares with other devices
    shares: frozenset[str]


def attributes_of(driver: Driver[Any, Any]) -> Attributes:
    """Read the attributes of ``driver``. Raises ``ConfigError`` if it is not a driver."""
    return Attributes(
        _name_of(driver),
        _positive(driver, "max_batch"),
        _positive(driver, "concurrency"),
        _optional_seconds(driver, "max_wait") or 0.0,
        _optional_seconds(driver, "latency_target"),
        _stateful(driver),
        _shares(driver),
    )


def mixed(name: str, *, stateful: bool) -> ConfigError:
    """The error for a device that is stateful where the others are not, or the other way round."""
    kind, others = ("stateful", "not") if stateful else ("not stateful", "stateful")
    text = f"device {name!r} is {kind} and others are {others}"
    return ConfigError(f"{text}: a stream of a model that remembers has to stay on one device")


def _name_of(driver: object) -> str:
    name = getattr(driver, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{driver!r} is no driver: it needs a name, a non-empty string")
    if not callable(getattr(driver, "infer", None)):
        raise ConfigError(f"device {name!r} is no driver: it has no coroutine method infer(batch)")
    return name


def _positive(driver: Driver[Any, Any], attribute: str) -> int:
    """Read an attribute that must be a whole number of 1 or more; 1 if the driver lacks it."""
    value = getattr(driver, attribute, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"device {driver.name!r}: {attribute} must be 1 or more, not {value!r}")
    return value


def _stateful(driver: Driver[Any, Any]) -> bool:
    """Whether it is; then it must be able to run one task at a time, and to be reset."""
    if not getattr(driver, "stateful", False):
        return False
    if (_positive(driver, "max_batch"), _positive(driver, "concurrency")) != (1, 1):
        text = "is stateful: max_batch and concurrency must be 1, as each task follows another"
        raise ConfigError(f"device {driver.name!r} {text}")
    if not callable(getattr(driver, "reset", None)):
        text = "is stateful: it needs a coroutine method reset(), which begins a stream"
        raise ConfigError(f"device {driver.name!r} {text}")
    return True


def _shares(driver: Driver[Any, Any]) -> frozenset[str]:
    """Read the names of what it shares; none if the driver lacks them."""
    shares = getattr(driver, "shares", None)
    return frozenset() if shares is None else shared_names(shares, f"device {driver.name!r}")


def _optional_seconds(driver: Driver[Any, Any], attribute: str) -> float | None:
    """Read an attribute that must be seconds, 0 or more; ``None`` if the driver lacks it."""
    value = getattr(driver, attribute, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        text = f"device {driver.name!r}: {attribute} must be seconds, 0 or more, not {value!r}"
        raise ConfigError(text)
    return float(value)
