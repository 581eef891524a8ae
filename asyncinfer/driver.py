"""The contract between the dispatcher and a device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from asyncinfer.errors import ConfigError

__all__ = (
    "THIS_HOST",
    "Driver",
    "ServiceTime",
    "SupportsCalibrate",
    "SupportsProbe",
    "SupportsReset",
    "shared_names",
)

#: in ``Driver.shares``: the processors of this host
THIS_HOST = "host:localhost"

InT = TypeVar("InT", contravariant=True)
OutT = TypeVar("OutT", covariant=True)


class ServiceTime(NamedTuple):
    """Seconds one ``infer`` call takes, as a line: ``per_batch + per_task * len(batch)``."""

    #: seconds a call costs whatever its size
    per_batch: float
    #: seconds each task in the batch adds
    per_task: float

    def of(self, batch: int) -> float:
        """Seconds for one call with ``batch`` tasks."""
        return self.per_batch + self.per_task * batch


class Driver(Protocol[InT, OutT]):
    """A coroutine object that speaks to one device.

    Any object of this shape is a driver. Subclassing ``Driver`` is optional and brings the
    defaults: one task per call, one call at a time, nothing to open or close.

    Promises a driver makes (``asyncinfer.testing.check_driver`` tests them):

    - ``open`` makes the device ready or raises; after a failed ``open``, ``close`` is still called.
    - ``close`` may be called at any time, more than once, and leaves no thread, process or port.
      After it, ``open`` works again.
    - ``infer`` returns exactly one output per input, in the batch's order. It runs in the
      submitter's ``contextvars`` context. Up to ``concurrency`` calls run at once.
    - One bad input: put an exception in its place in the output (``InputError`` if no device could
      take the input). Raising it instead fails the whole batch; its tasks are then run one by one.
    - A fault of the device itself: raise a ``DeviceError``. The batch's tasks move to other
      devices; this one is closed and opened again with growing pauses.
    - A device that turns out to be set up wrongly: raise a ``ConfigError``. The batch's tasks are
      run on other devices, and end with it if there are none.
    - Cancelling ``infer`` leaves the device usable, once the cancelled call has ended.
    - While the driver is closed, ``infer`` raises a ``DeviceError``, unless there is nothing to
      open. It never hangs.
    - Nothing here blocks the event loop.

    Five attributes are read if a driver has them. They may be set on any driver before it is given
    to a dispatcher:

    - ``max_wait``, default 0: seconds a task may wait for others to fill its batch, if more tasks
      may come.
    - ``latency_target``, default ``None``: seconds one call should take at most. It bounds the
      batch, by the time that calls have taken so far. Calls with one task are made in any case.
    - ``side_effects``, default ``False``: whether running a task does more than give its result.
      If so, no task is copied from or to this device, whatever ``Dispatcher(hedge=...)`` says.
    - ``stateful``, default ``False``: whether an answer depends on the tasks before it. A stream
      stays on one such device then, whose ``reset`` (``SupportsReset``) is awaited before the
      stream's first task.
    - ``shares``, default empty: names of what the device shares with others, so that it may slow
      them: one text, or a collection of them. It is read again after each ``open``. The name of
      this host's processors is ``THIS_HOST``; devices that name nothing in common are taken as
      independent. See docs/devices.md for what the drivers here say.
    """

    #: unique among the drivers of one dispatcher; shown in results, statistics and errors
    name: str
    #: most tasks one ``infer`` call takes; asked for again after ``open`` and after each call
    max_batch: int = 1
    #: ``infer`` calls that may be in flight at once
    concurrency: int = 1
    if not TYPE_CHECKING:  # for type checkers, an object of this shape needs no ``shares``
        shares = frozenset()

    async def open(self) -> None:
        """Make the device ready; raise ``DeviceError`` or ``ConfigError`` if that fails."""
        return  # a body, so that type checkers do not take the default for abstract

    async def close(self) -> None:
        """Release everything ``open`` and ``infer`` took. Idempotent."""
        return

    async def infer(self, batch: Sequence[InT]) -> Sequence[OutT | BaseException]:
        """Run the tasks; one output per input, in order. See the class for errors."""
        ...


@runtime_checkable
class SupportsCalibrate(Protocol):
    """A driver that can say, once open, how long a call takes."""

    async def calibrate(self) -> ServiceTime | None:
        """Time a warm-up call, or return a known figure; ``None`` if neither is possible.

        What it raises is the device's fault: others go on, and this one is opened again.
        """
        ...


@runtime_checkable
class SupportsProbe(Protocol):
    """A driver with a health check.

    The check is made while ``infer`` runs, if that is silent for too long; and when a device was
    lost repeatedly and is opened again, before it gets a task.
    """

    async def probe(self) -> None:
        """Return if the device answers, raise ``DeviceError`` if it does not."""
        ...


@runtime_checkable
class SupportsReset(Protocol):
    """A driver whose device can forget what it was asked: one with ``stateful = True``."""

    async def reset(self) -> None:
        """Begin a new stream: later answers are as if nothing was asked before.

        Called while open, between calls of ``infer``. Raises ``DeviceError`` if it fails.
        """
        ...


def shared_names(shares: Any, where: str) -> frozenset[str]:
    """The names in a value of ``Driver.shares``: one text is one name.

    ``ConfigError``, which begins with ``where``, for what is neither a text nor a collection of
    texts, and for an empty name.
    """
    names: Any = (shares,) if isinstance(shares, str) else shares
    listed = isinstance(names, Collection) and not isinstance(names, Mapping)
    if not listed or not all(map(_named, names)):
        text = f"shares must be a list of names, such as [{THIS_HOST!r}], or [] for nothing"
        raise ConfigError(f"{where}: {text}, not {shares!r}")
    return frozenset(name.strip() for name in names)


def _named(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())
