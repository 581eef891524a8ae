"""One device as the dispatcher sees it: its driver, its state, what it runs, how fast it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from asyncinfer.batching import BatchSize
from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.errors import ConfigError
from asyncinfer.estimator import Estimator

if TYPE_CHECKING:
    from asyncinfer.burst import Burst

__all__ = ("Device", "DeviceState")


class DeviceState(StrEnum):
    """Where a device is in its life."""

    #: not ready yet
    OPENING = "opening"
    #: up, nothing to do
    READY = "ready"
    #: up, running tasks
    BUSY = "busy"
    #: failed; being closed
    LOST = "lost"
    #: pausing before it is opened again
    BACKING_OFF = "backing_off"
    #: finishes what it runs, takes no more
    DRAINING = "draining"
    #: closed for good
    REMOVED = "removed"


class Device:
    """A driver with its state. Changed only by the dispatcher's own synchronous code."""

    def __init__(self, driver: Driver[Any, Any], position: int) -> None:
        self.driver = driver
        self.name = _name_of(driver)
        self.position = position
        self.max_batch = _positive(driver, "max_batch")
        self.concurrency = _positive(driver, "concurrency")
        #: seconds a task may wait for a fuller batch
        self.max_wait = _seconds(driver, "max_wait") or 0.0
        self._size = BatchSize(self.max_batch, _seconds(driver, "latency_target"))
        #: most tasks one call should have
        self.batch_limit = self._size.limit
        self.estimator = Estimator()
        #: told of every change of its state, of what it runs and of how fast it is
        self.changed: Callable[[Device], None] = nobody
        #: seconds of one call with a single task; infinite while unknown
        self.quickest = math.inf
        #: seconds of one call with ``batch_limit`` tasks; ``nan`` while unknown
        self.latency = math.nan
        #: seconds between two finished tasks under load; ``nan`` while unknown
        self.interval = math.nan
        self.bursts: list[Burst] = []
        self.tasks = 0
        self.batches = 0
        self.errors = 0
        #: how often it was lost, or could not be opened, since it last finished something
        self.failures = 0
        self._state = DeviceState.OPENING
        self._busy_seconds = 0.0
        self._busy_since = 0.0
        self._touched = 0.0

    # ---- state

    @property
    def state(self) -> DeviceState:
        """Its state, with ready and busy told apart."""
        if self._state is DeviceState.READY and self.bursts:
            return DeviceState.BUSY
        return self._state

    def become(self, state: DeviceState, now: float) -> None:
        """Change state. The only place that does."""
        self._state = state
        self._touched = now
        self.changed(self)

    @property
    def up(self) -> bool:
        """Whether it takes tasks, now or when it has finished the present ones."""
        return self._state is DeviceState.READY

    @property
    def free(self) -> bool:
        """Whether it can take a call now."""
        return self._state is DeviceState.READY and len(self.bursts) < self.concurrency

    def opened(self) -> None:
        """Its driver was opened: that may have found out how many tasks a call takes."""
        before, self.max_batch = self.max_batch, _positive(self.driver, "max_batch")
        if self.max_batch != before:
            self._size = BatchSize(self.max_batch, _seconds(self.driver, "latency_target"))
            self.batch_limit = self._size.limit

    # ---- what it runs

    def begin(self, burst: Burst, now: float) -> None:
        """A burst was handed to it."""
        if not self.bursts:
            self._busy_since = now
        self.bursts.append(burst)
        self.changed(self)

    def end(self, burst: Burst, now: float) -> None:
        """A burst left it, finished or taken away. Idempotent."""
        if burst not in self.bursts:
            return
        self.bursts.remove(burst)
        self._touched = now
        if not self.bursts:
            self._busy_seconds += now - self._busy_since
        self.changed(self)

    def busy_seconds(self, now: float) -> float:
        """Seconds in which it had at least one call in flight."""
        return self._busy_seconds + (now - self._busy_since if self.bursts else 0.0)

    @property
    def in_flight(self) -> int:
        """Tasks it is running or has reserved."""
        return sum(burst.tasks - burst.at for burst in self.bursts)

    @property
    def reserved(self) -> int:
        """Tasks it has and has not started."""
        return sum(burst.reserved for burst in self.bursts)

    # ---- how fast it is (a scheduling.WorkerView)

    def expect(self, batch: int) -> float:
        """Seconds a call with ``batch`` tasks should take; ``nan`` while unknown."""
        return self.estimator.expect(batch)

    def learn(self, batch: float, seconds: float) -> None:
        """Take a call with ``batch`` tasks into the estimate."""
        self.estimator.add(batch, seconds)
        self._measure()

    def calibrate(self, line: ServiceTime) -> None:
        """Start from a known service time."""
        self.estimator.start_from(line)
        self._measure()

    def _measure(self) -> None:
        if self.max_batch > 1:
            self._size.learn(self.estimator)
            self.batch_limit = self._size.limit
        self.quickest = self.estimator.expect(1)
        self.latency = self.estimator.expect(self.batch_limit)
        self.interval = self.latency / (self.batch_limit * self.concurrency)
        self.changed(self)

    def batch_within(self, seconds: float) -> int:
        """Tasks of the largest call that takes less than so many seconds; 0 while unknown."""
        tasks = self.estimator.batch_within(seconds)
        if not tasks > 1:
            return 0
        return min(self.batch_limit, math.ceil(tasks - 1e-6) - 1)

    @property
    def deviation(self) -> float:
        """Mean relative deviation of its calls from what was expected, 0 to 1."""
        return self.estimator.deviation

    def free_in(self, now: float) -> float:
        """Seconds until it can start another call."""
        if len(self.bursts) < self.concurrency:
            return 0.0
        if self.concurrency == 1:
            return self.bursts[0].remaining(now)
        return min(burst.remaining(now) for burst in self.bursts)

    def stuck(self, now: float) -> bool:
        """Whether it takes more than twice as long as expected; so while its speed is unknown."""
        return not (self.free or self.free_in(now) <= 1.01 * self.latency)  # 1 %: it is rounded

    def rested(self, now: float) -> float:
        """Seconds since it last finished something or was opened."""
        return now - self._touched


def _name_of(driver: object) -> str:
    name = getattr(driver, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{driver!r} is no driver: it needs a name, a non-empty string")
    if not callable(getattr(driver, "infer", None)):
        raise ConfigError(f"device {name!r} is no driver: it has no coroutine method infer(batch)")
    return name


def _positive(driver: Driver[Any, Any], attribute: str) -> int:
    value = getattr(driver, attribute, 1)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"device {driver.name!r}: {attribute} must be 1 or more, not {value!r}")
    return value


def _seconds(driver: Driver[Any, Any], attribute: str) -> float | None:
    value = getattr(driver, attribute, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        text = f"device {driver.name!r}: {attribute} must be seconds, 0 or more, not {value!r}"
        raise ConfigError(text)
    return float(value)


def nobody(device: Device) -> None:
    """Stand in where nobody needs to know of a change."""


def names(devices: Sequence[Device]) -> str:
    """The devices and their states, for messages."""
    return ", ".join(f"{device.name} ({device.state})" for device in devices) or "none"
