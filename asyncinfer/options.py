"""The options of a dispatcher that have several values: time limits, and copies of tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from asyncinfer.errors import ConfigError

__all__ = ("Hedge", "Timeouts")

#: the least urgent ``priority`` of a stream or a call; 1 is the most urgent
LEAST_URGENT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits in seconds; ``None`` means no limit.

    ``Dispatcher(timeout=5)`` is short for ``timeout=Timeouts(total=5)``.
    """

    #: one attempt to open a device; past it ``DeviceTimeout``, and the device is opened again later
    open: float | None = 60.0
    #: a task waiting to be started; past it the task ends with ``QueueTimeout``. Counts from the
    #: call of ``infer``; of a stream's task from when it came into the window
    queue: float | None = None
    #: one ``infer`` call on a device; past it ``DeviceTimeout``, and its tasks move on. ``"auto"``:
    #: by the device's own history, once it has one: 32 times what the call should take and 0.4 s
    #: (more where its calls were seen to vary), 2 s at least
    run: float | Literal["auto"] | None = "auto"
    #: a task until its result; past it ``DeadlineExceeded`` (``NoDeviceError`` if no device was
    #: up). Counts from the call of ``infer``; of a stream's task from its start on a device,
    #: retries included, so that reading ahead takes no task's time. One that waits counts from its
    #: turn: since its stream last got on
    total: float | None = None
    #: ending the calls of a device and closing it, both together; past it, what has not ended is
    #: left behind with a warning
    close: float = 10.0
    #: leaving ``async with``: how long accepted tasks may take to finish; past it they are
    #: cancelled. ``remove``: how long the tasks of the device may take; past it they move on
    drain: float | None = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "run" and value == "auto":
                continue
            if value is not None and not (_is_number(value) and value > 0):
                text = f"timeout {field.name} must be more than 0 seconds, not {value!r}"
                raise ConfigError(text)
        if self.close is None:
            raise ConfigError("timeout close must be more than 0 seconds: closing has to end")

    @classmethod
    def of(cls, value: float | Timeouts | None) -> Timeouts:
        """The time limits that ``Dispatcher(timeout=value)`` stands for."""
        if isinstance(value, Timeouts):
            return value
        return cls(total=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """When a copy of an overdue task may run on another device. Raises ``ConfigError``."""

    #: a call is overdue once it has taken longer, in proportion to what was expected, than this
    #: part of the device's last 128 calls
    quantile: float = 0.95
    #: the part that copies may have in the busy seconds of all calls
    budget: float = 0.03
    #: seconds by which a call must have outlived what was expected, at least
    least: float = 0.001

    def __post_init__(self) -> None:
        for name, most in (("quantile", 1.0), ("budget", 1.0), ("least", math.inf)):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value <= most):
                upper = "" if most == math.inf else f" and at most {most:g}"
                raise ConfigError(f"hedge: {name} must be more than 0{upper}, not {value!r}")

    @classmethod
    def of(cls, value: object) -> Hedge | None:
        """The option that ``Dispatcher(hedge=value)`` stands for; ``None`` for no copies."""
        if value is None or value is False:
            return None
        if value is True or value == "auto":
            return cls()
        if isinstance(value, Hedge):
            return value
        raise ConfigError(f"hedge must be None, True, 'auto' or a Hedge, not {value!r}")


def _is_number(value: object) -> bool:
    """Whether it is one; ``True`` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
