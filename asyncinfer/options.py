"""The options of a dispatcher that are more than one value: time limits, and copies of tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from asyncinfer.errors import ConfigError

__all__ = ("Hedge", "Timeouts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits in seconds; ``None`` means no limit.

    ``Dispatcher(timeout=5)`` is short for ``timeout=Timeouts(total=5)``.
    """

    #: one attempt to open a device; past it ``DeviceTimeout``, and it is tried again later
    open: float | None = 60.0
    #: a task waiting to be started; past it the task ends with ``QueueTimeout``
    queue: float | None = None
    #: one ``infer`` call on a device; past it ``DeviceTimeout``, and its tasks move on
    run: float | None = None
    #: a task from acceptance to result; past it ``DeadlineExceeded`` (``NoDeviceError`` if no
    #: device was up)
    total: float | None = None
    #: ending what a device runs and closing it, both together; past it the rest is left behind,
    #: with a warning
    close: float = 10.0
    #: leaving ``async with``: accepted tasks may finish for so long, then they are cancelled;
    #: ``remove``: so may those of the device, which then move on
    drain: float | None = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                text = f"timeout {field.name} must be more than 0 seconds, not {value!r}"
                raise ConfigError(text)

    @classmethod
    def of(cls, value: float | Timeouts | None) -> Timeouts:
        """What the ``timeout`` argument stands for."""
        if isinstance(value, Timeouts):
            return value
        return cls(total=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """When a copy of an overdue task may be run elsewhere. Raises ``ConfigError``."""

    #: a call is overdue once it has taken longer, for what was expected, than this part of the
    #: device's last 128 calls
    quantile: float = 0.95
    #: busy seconds of copies / busy seconds of all calls, at most
    budget: float = 0.03
    #: seconds by which a call must be overdue at least
    least: float = 0.001

    def __post_init__(self) -> None:
        for name, most in (("quantile", 1.0), ("budget", 1.0), ("least", math.inf)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value <= most):
                upper = "" if most == math.inf else f" and at most {most:g}"
                raise ConfigError(f"hedge: {name} must be more than 0{upper}, not {value!r}")

    @classmethod
    def of(cls, value: object) -> Hedge | None:
        """What the ``hedge`` argument stands for."""
        if value is None or value is False:
            return None
        if value is True or value == "auto":
            return cls()
        if isinstance(value, Hedge):
            return value
        raise ConfigError(f"hedge must be None, True, 'auto' or a Hedge, not {value!r}")
