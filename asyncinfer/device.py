"""One device as the dispatcher sees it: its driver, its state, what it runs, how fast it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asyncinfer.attributes import name_of, optional_seconds, positive
from asyncinfer.batching import BatchSize
from asyncinfer.breaker import Breaker
from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.estimator import Estimator
from asyncinfer.leftovers import Leftovers
from asyncinfer.lifecycle import UP, DeviceState, check

if TYPE_CHECKING:
    from asyncinfer.burst import Burst

__all__ = ("Device", "DeviceState")

#: a device is suspect once it is silent for this many times what its call should take, or for more
#: if its recent calls came within a factor ``SILENCE / USUAL_PEAK`` of that; and so many seconds
SILENCE = 8.0
USUAL_PEAK = 4.0
GRACE = 0.1


class Device:
    """A driver with its state. Changed only by the dispatcher's own synchronous code."""

    def __init__(self, driver: Driver[Any, Any], position: int) -> None:
        self.driver = driver
        self.name = name_of(driver)
        self.position = position
        self.max_batch = positive(driver, "max_batch")
        self.concurrency = positive(driver, "concurrency")
        #: seconds a task may wait for a fuller batch
        self.max_wait = optional_seconds(driver, "max_wait") or 0.0
        self._size = BatchSize(self.max_batch, optional_seconds(driver, "latency_target"))
        #: most tasks one call should have
        self.batch_limit = self._size.limit
        self.estimator = Estimator()
        #: told of every change of its state, of what it runs and of how fast it is
        self.changed: Callable[[Device], None] = nobody
        #: told of every change of its state, with the one before and the error behind it
        self.told: Callable[[Device, DeviceState | None, BaseException | None], None] = untold
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
        #: how often it was opened, or tried to be: what an earlier opening still brings is ignored
        self.generation = 0
        #: when it came into its state, and why
        self.since = 0.0
        self.reason = ""
        #: whether it takes tasks, now or when it has finished the present ones
        self.up = False
        #: when it will be opened again, while it is backing off
        self.next_attempt = math.nan
        #: when a call last brought results
        self.answered_at = -math.inf
        #: seconds that calls took since which were given up, and what was bearable before them
        self._given_up = 0.0
        self._bearable = math.inf
        #: by what factor the silence has grown too long for it to be looked into again
        self.patience = 1.0
        self.breaker = Breaker(f"42/{self.name}")
        self.leftovers = Leftovers()
        self._state = DeviceState.OPENING
        #: calls it may be running at once, as far as it is trusted
        self._slots = 0
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

    def become(
        self, state: DeviceState, now: float, reason: str = "", error: BaseException | None = None
    ) -> None:
        """Change state. The only place that does; ``IllegalTransition`` if the table has it not."""
        before = self._state if self.generation else None
        check(self.name, before, state)
        if state is DeviceState.OPENING:
            self.generation += 1
            self._given_up = 0.0
        self._state, self.since, self.reason = state, now, reason or str(error or "")
        self.up = state in UP
        self._slots = self.concurrency if state is DeviceState.READY else int(self.up)
        self._touched = now
        self.changed(self)
        self.told(self, before, error)

    @property
    def free(self) -> bool:
        """Whether it can take a call now."""
        return len(self.bursts) < self._slots

    @property
    def trusted(self) -> bool:
        """Whether it may be given more than one task."""
        return self._state is not DeviceState.SUSPECT

    @property
    def failures(self) -> int:
        """How often it was lost or could not be opened, as far as that is not forgiven."""
        return self.breaker.failures(self.answered_at)

    def opened(self) -> None:
        """Its driver was opened: that may have found out how many tasks a call takes."""
        before, self.max_batch = self.max_batch, positive(self.driver, "max_batch")
        if self.max_batch != before:
            self._size = BatchSize(self.max_batch, optional_seconds(self.driver, "latency_target"))
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

    def answered(self, now: float) -> None:
        """A call brought results."""
        self.answered_at = now
        self._given_up = 0.0
        self.patience = 1.0
        if self._state is DeviceState.SUSPECT:
            self.become(DeviceState.READY, now, "it answered")

    def gave_up(self, tasks: int, seconds: float) -> None:
        """A call was given up, as a copy was faster. It would have taken ``seconds`` at least.

        The second in a row doubles what is expected, as a second time-out does for TCP (RFC 6298).
        What silence is bearable stays as it was before the first.
        """
        if not self._given_up:
            self._bearable = self.bearable(self.expect(tasks))
        self._given_up += seconds
        cost, each = self.estimator.line
        if self.estimator.given_up:
            self.calibrate(ServiceTime(2 * cost, 2 * each))
        else:
            self.learn(tasks, seconds)
        self.estimator.given_up = True

    def silent_at(self) -> float:
        """When it will have been silent for far too long; infinite if that is unknown."""
        if not self.bursts:
            return math.inf
        longest = max(self.expect(burst.running) for burst in self.bursts)
        since = max(self.answered_at, min(burst.since for burst in self.bursts))
        at = since + self.patience * self.bearable(longest)
        if self._given_up:
            at = min(at, since - self._given_up + self.patience * self._bearable)
        return at

    def bearable(self, expected: float) -> float:
        """Seconds of silence that are nothing unusual; infinite while its speed is unknown."""
        usual = SILENCE * max(1.0, self.estimator.peak / USUAL_PEAK)
        return GRACE + usual * expected if expected >= 0 else math.inf

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
        if self.free:
            return 0.0
        if not self.bursts:  # it is not up any more, which the roster has not taken in yet
            return math.inf
        if self.concurrency == 1:
            return self.bursts[0].remaining(now)
        return min(burst.remaining(now) for burst in self.bursts)

    def stuck(self, now: float) -> bool:
        """Whether it takes more than twice as long as expected; so while its speed is unknown."""
        return not (self.free or self.free_in(now) <= 1.01 * self.latency)  # 1 %: it is rounded

    def rested(self, now: float) -> float:
        """Seconds since it last finished something or was opened."""
        return now - self._touched


def nobody(device: Device) -> None:
    """Stand in where nobody needs to know of a change."""


def untold(device: Device, before: DeviceState | None, error: BaseException | None) -> None:
    """Stand in where nobody needs to know of a change of state."""


def names(devices: Sequence[Device]) -> str:
    """The devices and their states, for messages."""
    return ", ".join(f"{device.name} ({device.state})" for device in devices) or "none"
