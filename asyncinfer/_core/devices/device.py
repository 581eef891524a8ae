"""One device as the dispatcher sees it: its driver, its state, what it runs, how fast it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Protocol

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.devices.attributes import attributes_of
from asyncinfer._core.devices.breaker import Breaker
from asyncinfer._core.devices.leftovers import Leftovers
from asyncinfer._core.devices.record import Record
from asyncinfer._core.devices.run_limit import HISTORY, NOTEWORTHY, RunLimit
from asyncinfer._core.devices.speed import BatchSize, Estimator
from asyncinfer._core.devices.states import check
from asyncinfer._core.tasks.spans import Row, Span
from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.errors import ConfigError
from asyncinfer.stats import DeviceState

__all__ = ("Burst", "Device", "DeviceListener", "names", "put_back")

#: a device is suspect once it is silent for this many times as long as its call should take
BEARABLE = 8.0
#: that is more in proportion if a recent call took more than this many times what was expected
USUAL_PEAK = 4.0
#: seconds of silence that are bearable on top of that
GRACE = 0.1
#: a call is long overdue, and copied, once it has taken this many times what it should, and GRACE
OVERDUE = 4.0
#: a call given up after less than this many times what was expected says nothing of its device
TOLERATED = 2.0
#: seconds without an answer that make a device of unknown speed doubtful
UNKNOWN_BEARABLE = 1.0
#: a device may leave those who ask it without an answer for so many seconds, and for so many times
#: as long as a call should take, until it counts as one that does not answer: slow is not dead
LEAST_WITHOUT_ANSWER, CALLS_WITHOUT_ANSWER = 3.0, 20.0
#: seconds for which a device that did not answer is doubtful, unless it answers: then only another
#: task can show what it is like. As long as one that fails again and again is held off at most
DOUBTFUL = 30.0
#: calls that are answered at once teach their speed together, so many, or as many as take so long
CALLS_AT_ONCE, SECONDS_AT_ONCE = 16, 0.001


class DeviceListener(Protocol):
    """What a device tells of its changes: the roster listens."""

    def changed(self, device: Device) -> None:
        """What the device runs, or how fast it is, has changed."""
        ...

    def became(
        self, device: Device, before: DeviceState | None, error: BaseException | None
    ) -> None:
        """The device has changed its state, because of ``error`` if there is one."""
        ...

    def shares_anew(self, device: Device) -> None:
        """The device shares something else than before."""
        ...

    def aside_or_not(self, device: Device) -> None:
        """The device is given nothing from now on, or is given tasks again."""
        ...

    def rests_or_takes_part(self, device: Device, reason: str) -> None:
        """The device rests from now on, or takes part again."""
        ...


class Device:
    """A driver with its state, what it runs, and how fast it is.

    Policies see it as a ``scheduling.WorkerView``. It is changed only by synchronous code of the
    core, on the event loop, so that no lock is needed; and it tells its listener of each change.
    """

    def __init__(self, driver: Driver[Any, Any], position: int, listener: DeviceListener) -> None:
        attributes = attributes_of(driver)
        self.driver = driver
        self.name = attributes.name
        self.position = position
        self.max_batch = attributes.max_batch
        self.concurrency = attributes.concurrency
        #: seconds a task may wait for a fuller batch
        self.max_wait = attributes.max_wait
        #: whether its answers depend on what came before
        self.stateful = attributes.stateful
        #: names of what it shares with other devices
        self.shares = attributes.shares
        self._size = BatchSize(attributes.max_batch, attributes.latency_target)
        #: most tasks one call should have
        self.batch_limit = self._size.limit
        self.estimator = Estimator()
        self._listener = listener
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
        #: how many attempts to open it there were; tells the calls of one opening from later ones
        self.generation = 0
        #: when it came into its state
        self.since = 0.0
        #: why it came into its state, in words
        self.reason = ""
        #: why it is given nothing though it is up, in words; ``None`` while it takes part
        self.rests: str | None = None
        #: whether it is given nothing just now, as it rests or others are being tried without it
        self.aside = False
        #: whether its state lets it take tasks; it may still be busy with others
        self.up = False
        #: when it will be opened again, while it is backing off; infinite if that is unknown
        self.next_attempt = math.nan
        #: when a call last brought results
        self.answered_at = -math.inf
        #: when it was last seen not to answer in time
        self.doubted_at = -math.inf
        #: the silence by which it is lost, if no limit was set
        self.run_limit = RunLimit()
        #: seconds taken by the calls that were given up since it last brought results
        self._given_up = 0.0
        #: seconds of silence that were bearable before the first of these calls
        self._bearable = math.inf
        #: seconds for which it was asked and did not answer since it last did, up to the end of the
        #: last call that was given up; infinite once it is on trial
        self._unanswered, self._counted_until = 0.0, -math.inf
        #: how many of them are no reason to doubt it
        self._tolerable = 0.0
        #: the watchdog looks into the device after this many times the silence that is bearable
        self.patience = 1.0
        self.breaker = Breaker(f"42/{self.name}")
        #: what is known of the tasks that failed on it
        self.record = Record()
        #: whether it is given nothing but tasks on trial, for what it has failed
        self.held = False
        self.leftovers = Leftovers()
        self._state = DeviceState.OPENING
        #: whether it has not come into any state yet
        self._is_new = True
        #: calls it may run at once in its present state
        self._slots = 0
        #: tasks, calls and seconds that the estimate has not learnt from yet
        self._at_once: tuple[int, int, float] = (0, 0, 0.0)
        self._busy_seconds = 0.0
        self._busy_since = 0.0
        #: when it last finished something or changed its state
        self._touched = 0.0

    # ---- state

    @property
    def state(self) -> DeviceState:
        """The device's state, with ready and busy told apart."""
        if self._state is DeviceState.READY and self.bursts:
            return DeviceState.BUSY
        return self._state

    def become(
        self, state: DeviceState, now: float, reason: str = "", error: BaseException | None = None
    ) -> None:
        """Change the state; no other method does. Raises ``IllegalTransition``.

        ``reason`` says why in words; without one, the text of ``error`` does.
        """
        if state is DeviceState.READY and self.record.distrusted:
            state = DeviceState.DISTRUSTED  # opened again, or answering again, and yet not trusted
        before, self._is_new = None if self._is_new else self._state, False
        check(self.name, before, state)
        if state is DeviceState.OPENING:
            self.generation += 1
            self._given_up = 0.0
        if state is DeviceState.SUSPECT:
            self.doubted_at = now
            if not self.up:
                self._unanswered = math.inf
        self._state, self.since, self.reason = state, now, reason or str(error or "")
        self.up = state.up
        self._slots = self._slots_now()
        self._touched = now
        self._listener.became(self, before, error)
        if not self.up:
            self.take_part(f"it is {state}")

    def rest(self, reason: str) -> None:
        """Note that the device is given nothing for now, and why. Only a change is an event."""
        rested, self.rests = self.rests is not None, reason
        if not rested:
            self._listener.rests_or_takes_part(self, reason)

    def take_part(self, reason: str = "") -> None:
        """Note that the device is given tasks again. Idempotent."""
        rested, self.rests = self.rests is not None, None
        if rested:
            self._listener.rests_or_takes_part(self, reason)

    def put_aside(self, aside: bool) -> None:
        """Give the device nothing from now on, or give it tasks again."""
        if aside is not self.aside:
            self.aside = aside
            self._listener.aside_or_not(self)

    def _slots_now(self) -> int:
        if self.held:
            return 0
        well = self._state in (DeviceState.READY, DeviceState.DISTRUSTED)
        return self.concurrency if well else int(self.up)

    def hold(self, held: bool) -> None:
        """Give the device nothing but tasks on trial from now on, or whatever it can take."""
        if held is self.held:
            return
        self.held = held
        self._slots = self._slots_now()
        if held:
            for burst in self.bursts:
                put_back(burst.take_reserved())
        self._listener.changed(self)

    def tell_trust(self, now: float, reason: str) -> None:
        """Show that the device is distrusted from now on, or trusted again, and why.

        A device in trouble of another kind is distrusted once it is over that.
        """
        if self._state in (DeviceState.READY, DeviceState.DISTRUSTED):
            self.become(DeviceState.READY, now, reason)

    def back_off(self, now: float, pause: float) -> None:
        """Note that the device will be opened again in ``pause`` seconds, and not before."""
        self.next_attempt = now + pause
        self.become(DeviceState.BACKING_OFF, now, self.reason)

    def wait_for_leftovers(self) -> None:
        """Note that the device will be opened again once a call left behind has ended."""
        self.next_attempt = math.inf
        self.reason = f"waiting for one of {self.leftovers.wedged} calls left behind to end"

    @property
    def free(self) -> bool:
        """Whether the device can take a call now."""
        return len(self.bursts) < self._slots

    @property
    def suspect(self) -> bool:
        """Whether it is given only one task at a time: it is silent for too long, or on trial."""
        return self._state is DeviceState.SUSPECT

    @property
    def returning(self) -> bool:
        """Whether it is not up, and is to be opened."""
        return self._state in (DeviceState.OPENING, DeviceState.LOST, DeviceState.BACKING_OFF)

    @property
    def failures(self) -> int:
        """How often it was lost or could not be opened, as far as that is not forgiven yet."""
        return self.breaker.failures(self.answered_at)

    def reread_max_batch(self) -> bool:
        """Ask the driver for its largest batch, which may change; return whether it has."""
        before = self.max_batch
        if getattr(self.driver, "max_batch", 1) != before:
            with suppress(ConfigError):  # nonsense: then it stays as it was
                self.reread_attributes()
        return self.max_batch != before

    def reread_attributes(self) -> None:
        """Ask the driver again for what it may have found out by now."""
        attributes = attributes_of(self.driver)
        if attributes.shares != self.shares:
            self.shares = attributes.shares
            self._listener.shares_anew(self)
        before, self.max_batch = self.max_batch, attributes.max_batch
        if self.max_batch != before:
            self._size = BatchSize(attributes.max_batch, attributes.latency_target)
            self.batch_limit = self._size.limit

    # ---- what it runs

    def assign(self, burst: Burst, now: float) -> None:
        """Note that ``burst`` is to run on this device from now on."""
        if not self.bursts:
            self._busy_since = now
        self.bursts.append(burst)
        self._listener.changed(self)

    def release(self, burst: Burst, now: float) -> None:
        """Note that ``burst`` has left this device, finished or taken away. Idempotent."""
        if burst not in self.bursts:
            return
        self.bursts.remove(burst)
        self._touched = now
        if not self.bursts:
            self._busy_seconds += now - self._busy_since
        self._listener.changed(self)

    def count_results(self, burst: Burst, calls: int) -> None:
        """Take into the figures what the ``calls`` of ``burst`` that returned have brought."""
        tasks, now = burst.tasks_run, burst.call_began
        if 2 * burst.failed <= tasks:  # what fails may take any time: it teaches no speed
            self._learn_mean(tasks, calls, now - burst.began, now)
        self._count(tasks, calls, now)

    def count_at_once(self, tasks: int, calls: int, began: float, now: float) -> None:
        """Take into the figures what calls have brought that it answered at once, one by one.

        The estimate learns from some of them together, since it costs more than such a call.
        """
        seconds = now - began
        if not self.bursts:
            self._busy_seconds += seconds
        self._touched = now
        self._count(tasks, calls, now)
        before = self._at_once
        tasks, calls, seconds = before[0] + tasks, before[1] + calls, before[2] + seconds
        self._at_once = tasks, calls, seconds
        if calls >= CALLS_AT_ONCE or seconds >= SECONDS_AT_ONCE:
            self._at_once = 0, 0, 0.0
            self._learn_mean(tasks, calls, seconds, now)

    def _learn_mean(self, tasks: int, calls: int, seconds: float, now: float) -> None:
        """Learn one speed from calls that have taken ``seconds`` together: that of their mean."""
        self.learn(tasks / calls, seconds / calls)
        if seconds / calls > NOTEWORTHY:
            self.run_limit.took(seconds / calls, now)

    def _count(self, tasks: int, calls: int, now: float) -> None:
        """Count calls that have brought results until ``now``."""
        self.batches += calls
        self.tasks += tasks
        self.answered_at = now
        self._given_up = self._unanswered = 0.0
        self.patience = 1.0
        if self._state is DeviceState.SUSPECT and now >= self.since:
            self.become(DeviceState.READY, now, "it answered")

    def count_error(self) -> None:
        """Count that the device failed, or that a task failed on it."""
        self.errors += 1

    def double_patience(self) -> None:
        """Have the watchdog look into the device next after a silence of twice the length."""
        self.patience *= 2

    def gave_up(self, tasks: int, seconds: float, now: float) -> None:
        """A call was given up after ``seconds``, as a copy on another device was faster.

        While no call brings results, the silence that is bearable stays what it was before the
        first call that was given up: the growing estimate must not hide that the device is silent.
        """
        self._add_silence(tasks, seconds)
        self._leave_unanswered(now)
        self.estimator.learn_given_up(tasks, seconds)
        self._measure()

    def went_unanswered(self, tasks: int, seconds: float, now: float) -> None:
        """Nobody waits any more for the results of a call that was cancelled after ``seconds``.

        Calls that were given up together tell as much as one that is silent for as long.
        """
        if seconds < TOLERATED * self.expect(tasks):
            return
        self._add_silence(tasks, seconds / self.concurrency)  # others are silent at the same time
        self._leave_unanswered(now)
        known = self._bearable < math.inf
        if self._given_up > (self._bearable if known else UNKNOWN_BEARABLE):
            self.doubted_at = now

    def timed_out(self, now: float) -> None:
        """It is lost, as it did not answer in time."""
        self.doubted_at = now
        self._leave_unanswered(now)

    def _add_silence(self, tasks: int, seconds: float) -> None:
        if not self._given_up:
            self._bearable = self.bearable(self.expect(tasks))
        self._given_up += seconds

    def _leave_unanswered(self, now: float) -> None:
        """Somebody waits no longer for what it was asked."""
        if not self._unanswered:  # what is learnt from calls that were given up must not hide them
            self._tolerable = self._tolerable_now
        self._unanswered += self._asked_for(now)
        self._counted_until = now

    def _asked_for(self, now: float) -> float:
        """For how long it has not answered, apart from what is counted as unanswered already."""
        return now - max(self.silent_since, self._counted_until) if self.bursts else 0.0

    @property
    def _tolerable_now(self) -> float:
        if math.isnan(self.latency):
            return LEAST_WITHOUT_ANSWER
        return max(LEAST_WITHOUT_ANSWER, CALLS_WITHOUT_ANSWER * self.latency)

    @property
    def silent_since(self) -> float:
        """When it last answered, or was asked for the first time since; it must be busy."""
        return max(self.answered_at, min(burst.call_began for burst in self.bursts))

    def silent_for(self, now: float) -> float:
        """For how long it has not answered, calls that were given up included; it is busy."""
        return now - self.silent_since + self._given_up

    def silent_at(self) -> float:
        """When the device will have been silent for far too long; infinite if that is unknown."""
        if not self.bursts:
            return math.inf
        longest = max(self.expect(burst.running) for burst in self.bursts)
        since = self.silent_since
        at = since + self.patience * self.bearable(longest)
        if self._given_up:
            at = min(at, since - self._given_up + self.patience * self._bearable)
        return at

    def lost_at(self) -> float:
        """When the device is lost by its silence, or by that of one call where others answer.

        Infinite while it is idle or has no history. A call that shares the device with others may
        take as many times as long.
        """
        if not self.bursts or self.batches < HISTORY:
            return math.inf
        limit, since = self.run_limit.seconds, self.silent_since
        longest = max(self.expect(burst.running) for burst in self.bursts)
        at = since + limit(self.bearable(longest), since)
        if self._given_up:
            at = min(at, since - self._given_up + limit(self._bearable, since))
        oldest = min(self.bursts, key=lambda burst: burst.call_began)
        shared = self.bearable(self.concurrency * self.expect(oldest.running))
        return min(at, oldest.call_began + limit(shared, oldest.call_began))

    def overdue_at(self, burst: Burst) -> float:
        """From when on the present call of ``burst`` is long overdue, so that copies are due.

        Sooner if the device is suspect; while its speed is unknown, as soon as it may be.
        """
        expected = burst.expected
        if math.isnan(expected):
            return burst.call_began + GRACE
        if self.suspect:
            return burst.call_began + TOLERATED * expected
        return burst.call_began + GRACE + OVERDUE * expected

    def may_answer(self, now: float) -> bool:
        """Whether it is up, and has answered since it last did not in time, or may do so.

        It may for a while: see ``LEAST_WITHOUT_ANSWER``.
        """
        if not self.up or self.doubted_at <= self.answered_at:
            return self.up
        tolerable = self._tolerable if self._unanswered else self._tolerable_now
        if self._unanswered + self._asked_for(now) < tolerable:
            return True
        return not self.bursts and now >= self.doubted_at + DOUBTFUL

    def bearable(self, expected: float) -> float:
        """Longest silence that is not suspect, during a call ``expected`` to take so long.

        In seconds; infinite while the device's speed is unknown.
        """
        usual = BEARABLE * max(1.0, self.estimator.peak / USUAL_PEAK)
        return GRACE + usual * expected if expected >= 0 else math.inf

    def busy_seconds(self, now: float) -> float:
        """Seconds in which the device had at least one call in flight."""
        return self._busy_seconds + (now - self._busy_since if self.bursts else 0.0)

    @property
    def in_flight(self) -> int:
        """Tasks that the device is running or has reserved."""
        return sum(burst.tasks - burst.tasks_run for burst in self.bursts)

    @property
    def reserved(self) -> int:
        """Tasks that the device was given and has not started."""
        return sum(burst.reserved for burst in self.bursts)

    # ---- how fast it is (a scheduling.WorkerView)

    def expect(self, batch: int) -> float:
        """Seconds a call with ``batch`` tasks should take; ``nan`` while unknown."""
        return self.estimator.expect(batch)

    def learn(self, batch: float, seconds: float) -> None:
        """Take a call with ``batch`` tasks, which took ``seconds``, into the estimate."""
        self.reread_max_batch()
        self.estimator.learn(batch, seconds)
        self._measure()

    def calibrate(self, line: ServiceTime) -> None:
        """Start the estimate from a known service time."""
        self.estimator.start_from(line)
        self._measure()

    def _measure(self) -> None:
        """Work out anew, from the estimate, what policies see of the device's speed."""
        if self.max_batch > 1:
            self._size.learn(self.estimator)
            self.batch_limit = self._size.limit
        self.quickest = self.estimator.expect(1)
        self.latency = self.estimator.expect(self.batch_limit)
        self.interval = self.latency / (self.batch_limit * self.concurrency)
        self._listener.changed(self)

    def batch_within(self, seconds: float) -> int:
        """Tasks of the largest call that takes less than ``seconds``; 0 while unknown."""
        tasks = self.estimator.batch_within(seconds)
        if not tasks > 1:
            return 0
        return min(self.batch_limit, math.ceil(tasks - 1e-6) - 1)

    @property
    def repeatable(self) -> bool:
        """Whether a task that it runs may be run by another device as well."""
        return not (self.stateful or getattr(self.driver, "side_effects", False))

    @property
    def deviation(self) -> float:
        """Mean relative deviation of the device's calls from what was expected, 0 to 1."""
        return self.estimator.deviation

    def free_in(self, now: float) -> float:
        """Seconds until the device can start another call."""
        if self.free:
            return 0.0
        if not self.bursts:  # it is no longer up, and the roster has not updated its lists yet
            return math.inf
        if self.concurrency == 1:
            return self.bursts[0].remaining(now)
        return min(burst.remaining(now) for burst in self.bursts)

    def stuck(self, now: float) -> bool:
        """Whether its calls take more than twice as long as expected, or its speed is unknown.

        An overdue call is expected to take as long again as it is overdue: see ``Burst.remaining``.
        The 1 % allows for rounding.
        """
        return not (self.free or self.free_in(now) <= 1.01 * self.latency)

    def rested(self, now: float) -> float:
        """Seconds since the device last finished something or changed its state."""
        return now - self._touched


class Burst:
    """Tasks of one lane that are handed to a device at once, and run one batch after the other.

    The first batch is started at once; the tasks after it are reserved. A burst runs in one asyncio
    task, its ``runner``, so that the cost of starting one is paid once for many short calls.
    """

    __slots__ = (
        "alarm",
        "batch",
        "began",
        "beside",
        "call_began",
        "device",
        "doubts",
        "failed",
        "freed",
        "generation",
        "inputs",
        "lane",
        "live",
        "outputs",
        "passed_on",
        "resets",
        "runner",
        "spans",
        "tasks",
        "trial",
    )

    def __init__(self, device: Device, spans: list[Span], batch: int, now: float) -> None:
        self.device = device
        #: the opening of the device that the burst belongs to
        self.generation = device.generation
        self.lane = spans[0].lane
        #: whether the device is to be reset before the first call, as a stream begins
        self.resets = False
        #: whether it is to show how fast the device is now, so that nobody is to wait for it
        self.trial = False
        #: what tells which devices ran when it began; ``None`` if that does not matter
        self.beside: int | None = None
        #: when the call before it ended, if the device has waited for nothing but the loop since
        self.freed: float | None = None
        #: the inputs of all calls; what is removed from the end is not run
        self.inputs: list[Any] = list(chain.from_iterable([span.inputs for span in spans]))
        #: most tasks of one call
        self.batch = batch
        #: the tasks whose outputs have not been passed on
        self.spans = Row(spans)
        #: number of tasks, those included whose outputs were passed on
        self.tasks = self.spans.tasks
        #: number of tasks whose outputs were passed on to the lane
        self.passed_on = 0
        #: outputs that have not been passed on: those of the first of ``spans``
        self.outputs: list[Any] = []
        #: how many of the outputs so far were errors
        self.failed = 0
        #: where the same tasks failed together before, and how, if that is not known to be their
        #: own fault
        self.doubts: tuple[Device, BaseException] | None = None
        #: when the first call started
        self.began = now
        #: when the present call started, and the one before it ended
        self.call_began = now
        #: ``False`` once its tasks were taken away: what its calls still bring is ignored then
        self.live = True
        #: the asyncio task that awaits the driver; ``None`` until it is started
        self.runner: asyncio.Task[None] | None = None
        #: rings when a call takes longer than the run timeout
        self.alarm: Alarm | None = None

    def batches(self) -> Iterator[list[Any]]:
        """The inputs of one call after the other, as far as they were not removed meanwhile."""
        inputs, size = self.inputs, self.batch
        if size == 1:
            for item in inputs:
                yield [item]
            return
        at = 0
        while at < len(inputs):
            yield inputs[at : at + size]
            at += size

    @property
    def tasks_run(self) -> int:
        """Number of tasks that have been run; those of the present call are not among them."""
        return self.passed_on + len(self.outputs)

    @property
    def calls(self) -> int:
        """Number of calls that returned."""
        return -(-self.tasks_run // self.batch)

    @property
    def reserved(self) -> int:
        """Number of tasks that were not started: those after the present call's."""
        return max(0, self.tasks - self.tasks_run - self.batch)

    def cancel(self) -> None:
        """Make no further call, and cancel the present one, unless it is what calls this."""
        self.inputs.clear()  # so that a driver that ignores the cancellation is not called again
        if self.runner is not None and self.runner is not asyncio.current_task():
            self.runner.cancel()

    def take_finished(self) -> list[Span]:
        """Remove and return the tasks that have been run, with their outputs."""
        outputs = self.outputs[:]
        self.outputs.clear()
        self.passed_on += len(outputs)
        spans = self.spans.take(len(outputs))
        if len(spans) == 1 and not spans[0].done:
            spans[0].outputs = outputs
            return spans
        at = 0
        for span in spans:
            if not span.done:  # a span that is done has an outcome already, which stays
                span.outputs = outputs[at : at + span.count]
            at += span.count
        return spans

    @property
    def running(self) -> int:
        """Number of tasks in the present call."""
        return min(self.batch, self.tasks - self.tasks_run)

    def share_running(self) -> list[Span]:
        """The tasks of the present call as single tasks. They stay here, and may be copied.

        All outputs must have been passed on before.
        """
        return self.spans.singles(self.running)

    def take_running(self) -> list[Span]:
        """Remove and return the tasks of the present call, as single tasks."""
        return [task for span in self._take(self.batch) for task in span.singles()]

    def take_reserved(self) -> list[Span]:
        """Remove and return the tasks that were not started."""
        reserved = self.reserved
        del self.inputs[self.tasks_run + self.batch :]
        return self._take(reserved, self.batch)

    def take_rest(self) -> list[Span]:
        """Remove and return all tasks that have not been run."""
        self.inputs.clear()
        return self._take(self.tasks - self.tasks_run)

    def _take(self, count: int, behind: int = 0) -> list[Span]:
        """Remove and return ``count`` tasks, leaving out the first ``behind`` that were not run."""
        spans = self.spans.take(count, len(self.outputs) + behind)
        self.tasks = self.passed_on + self.spans.tasks
        return spans

    @property
    def expected(self) -> float:
        """Seconds that may be waited for the present call; ``nan`` if that is to be seen."""
        return math.nan if self.trial else self.device.expect(self.running)

    def remaining(self, now: float) -> float:
        """Seconds until the present call ends; one that is overdue takes as long again.

        While the device's speed is unknown, a call is taken to be half over.
        """
        expected = self.device.expect(self.running)
        if math.isnan(expected):
            return now - self.call_began
        return abs(self.call_began + expected - now)

    @property
    def abandoned(self) -> bool:
        """Whether there are tasks that have not been run, and nobody wants any of them any more."""
        return self.tasks_run < self.tasks and all(span.done for span in self.spans)


def put_back(spans: list[Span]) -> None:
    """Let tasks of one lane, which were taken and not started, wait there again."""
    if spans:
        spans[0].lane.put_back(spans)


def names(devices: Iterable[Device]) -> str:
    """The names and states of ``devices`` in one text, for messages."""
    return ", ".join(f"{device.name} ({device.state})" for device in devices) or "none"
