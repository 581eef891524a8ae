"""The time limits of a dispatcher, each with its own name and its own error."""

from __future__ import annotations

from dataclasses import dataclass, fields

from asyncinfer.errors import ConfigError

__all__ = ("Timeouts",)


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
