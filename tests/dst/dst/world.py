"""One run of a schedule on the virtual clock, with every promise checked."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer.errors import ClosedError, ConfigError, DeviceError
from asyncinfer.events import Event
from asyncinfer.testing import SimulatedHost
from dst import inside
from dst.afterwards import check_attempts, check_left, check_left_behind, check_stats
from dst.clock import WatchedLoop
from dst.devices import Faults, FaultyDriver
from dst.ledger import Ledger
from dst.schedule import (
    Add,
    BadInput,
    Broken,
    CallFault,
    Calls,
    Cancel,
    Close,
    CloseFault,
    Cores,
    DevicePlan,
    Drain,
    Flap,
    Leap,
    Leave,
    OpenFault,
    Outage,
    Remove,
    ResetFault,
    Schedule,
    Slow,
    Step,
    Stream,
)
from dst.work import Work

__all__ = ("FOREVER", "World")

#: virtual seconds after which a run is taken to hang, far beyond all that it may take
FOREVER = 1e6
#: steps of closing, each of which takes the close timeout at most: the sources, then the devices
CLOSE_STEPS = 2
#: how often one task is copied at most: with others, alone as these failed together, and once more
#: as that copy hangs too
MOST_COPIES = 3

#: many copies, so that much can go wrong with them
EAGER = Hedge(quantile=0.5, budget=1.0)


class LeftByError(Exception):
    """Raised in the body of ``async with``, as planned."""


class World:
    """A dispatcher with all that happens to it. Made on the event loop it runs on."""

    def __init__(self, schedule: Schedule) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WatchedLoop)
        self.loop = loop
        self.schedule, self.settings = schedule, schedule.settings
        self.ledger = Ledger(loop, window=self.settings.window)
        self.faults = Faults(self.ledger)
        self.drivers: dict[str, FaultyDriver] = {}
        self.hosts: dict[str, SimulatedHost] = {}
        self.dispatcher = self._dispatcher()
        self.work = Work(self.dispatcher, self.settings, self.faults, self.ledger)
        #: events of each task: (stream, index) by kind
        self.events: Counter[tuple[str, int, int]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.opened = asyncio.Event()
        self.leave = asyncio.Event()
        self.leave_by_error = False
        #: whether it was closed or drained while it was opening
        self.ended_early = False
        self.cancelled_at = 0.0
        #: calls of add and remove in progress
        self.plugging = 0
        #: asyncio tasks of consumers and others
        self.tasks: list[asyncio.Task[None]] = []
        self.main: asyncio.Task[None] | None = None
        self.streams = self.callers = 0

    def _dispatcher(self) -> Dispatcher[Any, Any]:
        s = self.settings
        timeouts = Timeouts(
            open=s.open, queue=s.queue, run=s.run, total=s.total, close=s.close, drain=s.drain
        )
        return Dispatcher(
            [self._driver(plan) for plan in self.schedule.devices],
            policy=s.policy,
            window=s.window,
            queue_size=s.queue_size,
            retries=s.retries,
            timeout=timeouts,
            hedge=EAGER if s.hedged else None,
            on_event=self._on_event,
        )

    def _driver(self, plan: DevicePlan) -> FaultyDriver:
        host = self._host(plan.host) if plan.host else None
        driver = FaultyDriver(plan, self.faults, self.ledger, self.settings, host)
        self.drivers[plan.name] = driver
        return driver

    def _host(self, name: str) -> SimulatedHost:
        made = SimulatedHost(self.settings.cores, self.settings.contention, name or "none")
        return self.hosts.setdefault(name, made)

    # ---- what the dispatcher tells

    def _on_event(self, event: Event) -> None:
        ledger = self.ledger
        ledger.note(event.kind, event.device, event.stream, event.index, repr(event.error))
        self.kinds[event.kind] += 1
        if event.kind == "device.lost":
            ledger.lost[event.device].append(ledger.now)
        if event.kind == "device.draining":
            ledger.left.add(event.device)
        if event.stream < 0:
            ledger.steady.pop(event.device, None)
            if event.kind == "device.ready":
                ledger.steady[event.device] = ledger.now
            return
        key = (event.kind, event.stream, event.index)
        self.events[key] += 1
        if event.kind == "task.hedged":  # a copy may fail besides
            ledger.copies = MOST_COPIES
        most = {"task.retried": self.settings.retries + 1, "task.hedged": MOST_COPIES}.get(
            event.kind, 1
        )  # one retry is spared, as the device's fault
        if event.kind == "task.retried":
            most += sum(call.end == "refused" for call in ledger.calls)
        if self.settings.stateful and event.kind in ("task.retried", "task.hedged"):
            most = 0
        ledger.check(self.events[key] <= most, "events", *key, "comes too often")
        if event.kind in ("task.finished", "task.failed"):
            ends = sum(self.events[kind, *key[1:]] for kind in ("task.finished", "task.failed"))
            ledger.check(ends == 1, "events", *key[1:], "ends twice")

    # ---- steps

    def prepare(self, step: Step) -> bool:
        """Plan what goes wrong at a number, not at a time; tell whether ``step`` is of that."""
        faults = self.faults
        if isinstance(step, CallFault):
            faults.calls.setdefault((step.device, step.call), step)
        elif isinstance(step, OpenFault):
            faults.opens.setdefault((step.device, step.opening), step)
        elif isinstance(step, CloseFault):
            faults.closes.setdefault((step.device, step.closing), step)
        elif isinstance(step, ResetFault):
            faults.resets.setdefault((step.device, step.reset), step)
        elif isinstance(step, Broken):
            faults.broken.setdefault(step.device, step)
        elif isinstance(step, BadInput):
            faults.inputs.setdefault((f"s{step.stream}", step.index), step.kind)
        else:
            return False
        return True

    def do(self, step: Step) -> None:
        """Do what a step says, or begin to."""
        self.ledger.note("step", step)
        driver = self.drivers.get(getattr(step, "device", ""))  # type: ignore[arg-type]
        if isinstance(step, Stream):
            self._begin(self._consume(f"s{self.streams}", step))
            self.streams += 1
        elif isinstance(step, Calls):
            for _ in range(step.count):
                self._begin(self._call(f"c{self.callers}", step))
                self.callers += 1
        elif isinstance(step, Leap):
            self.ledger.leapt += step.seconds
            self.loop.leap(step.seconds)
        elif isinstance(step, Cores):
            self._host(step.host).cores = step.cores
        elif isinstance(step, Add):
            self._begin(self._impatient(self._add(step.device), step.patience))
        elif isinstance(step, Remove):
            self._begin(self._impatient(self._remove(step), step.patience))
        elif isinstance(step, Outage | Flap | Slow) and driver is not None:
            self._trouble(driver, step)
        else:
            self._end(step)

    def _trouble(self, driver: FaultyDriver, step: Outage | Flap | Slow) -> None:
        if isinstance(step, Outage):
            driver.unplug(step.seconds)
        elif isinstance(step, Flap):
            driver.flap(step.seconds)
        else:
            driver.factor = step.factor

    def _end(self, step: Step) -> None:
        if isinstance(step, Drain | Close):
            self._begin(self._drain_or_close(step))
        elif isinstance(step, Leave):
            self.leave_by_error = step.error
            self.leave.set()
        elif isinstance(step, Cancel) and self.main is not None:
            self.work.closing = True
            self.work.cut_in()
            self.cancelled_at = self.ledger.now
            self.main.cancel()

    def _begin(self, coro: Any) -> None:
        self.tasks.append(self.loop.create_task(coro, name=f"world {len(self.tasks)}"))

    async def _consume(self, name: str, plan: Stream) -> None:
        if await self._is_open():
            await self.work.consume(name, plan)

    async def _call(self, name: str, plan: Calls) -> None:
        if await self._is_open():
            await self.work.call(name, plan)

    async def _is_open(self) -> bool:
        await self.opened.wait()
        return inside.engine_of(self.dispatcher) is not None

    async def _impatient(self, change: Any, patience: float | None) -> None:
        """Call ``add`` or ``remove``, and cancel the call; then it happened, or not, as a whole."""
        if not await self._is_open():
            change.close()
            return
        changing = self.loop.create_task(change, name="impatient")
        await asyncio.wait([changing], timeout=patience)
        if changing.cancel():
            self.ledger.note("cancelled", "add or remove")
        await asyncio.wait([changing])
        if not changing.cancelled():
            changing.result()

    async def _add(self, plan: DevicePlan) -> None:
        if plan.name in self.drivers or not await self._is_open():
            return
        driver = self._driver(plan)
        try:
            with self._plugging():
                await self.dispatcher.add(driver)
        except (DeviceError, ClosedError) as error:
            self.ledger.note("not added", repr(error))
            self._closed_only_when_closing(error)

    async def _remove(self, step: Remove) -> None:
        first = self.schedule.devices[0].name  # without any device, tasks rightly wait for ever
        if not await self._is_open() or (step.device == first and self.settings.total is None):
            return
        begun = self.ledger.now
        try:
            with self._plugging():
                await self.dispatcher.remove(step.device, drain=step.drain)
        except (ConfigError, ClosedError) as error:
            self.ledger.note("not removed", repr(error))
            self._closed_only_when_closing(error)
        else:
            self.ledger.note("removed", step.device)
            if not step.drain:
                self._check_closing(begun, 0.0, f"removing {step.device}")

    @contextmanager
    def _plugging(self) -> Iterator[None]:
        self.plugging += 1
        try:
            yield
        finally:
            self.plugging -= 1

    def _closed_only_when_closing(self, error: Exception) -> None:
        right = self.work.closing or not isinstance(error, ClosedError)
        self.ledger.check(right, "closed", error)

    async def _drain_or_close(self, step: Drain | Close) -> None:
        self._closes()
        self.ended_early = not self.opened.is_set()
        begun = self.ledger.now
        if isinstance(step, Close):
            self.work.cut_in()
            await self.dispatcher.close()
            self._check_closing(begun, 0.0, "close()")
            return
        try:
            await self.dispatcher.drain(step.timeout)
        except TimeoutError:
            self.ledger.check(step.timeout is not None, "drain", "times out without a timeout")
            self._check_closing(begun, step.timeout or 0.0, "drain()")

    def _closes(self) -> None:
        """What was accepted may start at once, and no more is accepted."""
        self.work.closing = True
        self.ledger.window = math.inf

    def _check_closing(self, begun: float, allowed: float, what: str) -> None:
        taken = self.ledger.now - begun - self.ledger.leapt - allowed
        most = CLOSE_STEPS * self.settings.close
        self.ledger.check(taken < most + 1e-3, "closing", what, "takes", taken, "s")

    # ---- from beginning to end

    async def __call__(self) -> None:
        steps = [step for step in self.schedule.steps if not self.prepare(step)]
        self.begin()
        for step in sorted(steps, key=lambda step: step.at):
            await asyncio.sleep(max(0.0, step.at - self.ledger.now))
            self.do(step)
        await self.finish()

    def begin(self) -> None:
        """Open the dispatcher, and watch it from now on."""
        self.loop.before_moving = self._at_rest
        self.main = self.loop.create_task(self.inside(), name="main")

    def _at_rest(self) -> None:
        engine = inside.engine_of(self.dispatcher)
        if engine is not None and engine.running:
            inside.check_at_rest(engine, self.settings, self.ledger)

    async def inside(self) -> None:
        """Open the dispatcher, and leave it when told to."""
        begun = self.ledger.now
        allowed = self.settings.drain or 0.0
        try:
            async with self.dispatcher:
                self.opened.set()
                self.ledger.check(not self.ended_early, "closing", "is ignored as it opens")
                await self.leave.wait()
                begun = self.ledger.now
                self._closes()
                if self.leave_by_error:
                    allowed = 0.0
                    self.work.cut_in()
                    raise LeftByError
                self.work.cut_in(math.inf if self.settings.drain is None else self.settings.drain)
        except LeftByError:
            pass
        except DeviceError as error:  # none could be opened
            self.ledger.check(not self.opened.is_set(), "leaving", repr(error))
            begun = self.ledger.now
        except ClosedError as error:  # while it was opening
            right = self.work.closing and not self.opened.is_set()
            self.ledger.check(right, "leaving", repr(error))
            begun = self.ledger.now
        except asyncio.CancelledError:
            begun, allowed = max(begun, self.cancelled_at), 0.0
            self.ledger.check(self.work.cut, "leaving", "cancelled by nobody")
        finally:
            self.opened.set()
            self.work.closing = True
        self.ledger.note("left")
        await asyncio.sleep(0)
        # what add and remove have not ended yet is theirs to end
        check_left_behind(self.ledger, 2 * self.plugging)
        if self.settings.drain is not None:
            self._check_closing(begun, allowed, "leaving")

    async def finish(self) -> None:
        """End all faults, see all work end, leave, and look at what is left."""
        await asyncio.sleep(self.settings.heal_after)
        self.heal()
        self._begin(self._add(DevicePlan("last")))  # the others may have been removed
        await self._all_end()
        if not self.work.closing:
            self.do(Stream(tasks=2) if self.settings.stateful else Calls(count=2))
            await self._all_end()
        self.leave.set()
        assert self.main is not None
        await asyncio.wait([self.main])
        if not self.main.cancelled() and (error := self.main.exception()) is not None:
            raise error
        await self._all_end()
        late = any(fault.kind == "stubborn late" for fault in self.faults.opens.values())
        # what opened too late is closed again, for which it has the close timeout
        closing = max(driver.plan.close_seconds for driver in self.drivers.values())
        closing = max(closing, self.settings.close)
        await asyncio.sleep(late and closing + 0.001)
        self._check_all()

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        self.ledger.note("healed")
        self.faults.healed.set()
        for driver in self.drivers.values():
            driver.heal()
        for host in self.hosts.values():
            host.cores = self.settings.cores

    async def _all_end(self) -> None:
        while self.tasks:
            done, left = await asyncio.wait(self.tasks, timeout=FOREVER)
            if left:
                names = sorted(task.get_name() for task in left)
                self.ledger.wrong("liveness", f"{names} never end")
                raise asyncio.CancelledError
            self.tasks = [task for task in self.tasks if task not in done]
            for task in done:
                if task.cancelled():
                    self.ledger.wrong("cancelled", task.get_name())
                elif (error := task.exception()) is not None:
                    raise error

    def _check_all(self) -> None:
        ledger, engine = self.ledger, inside.engine_of(self.dispatcher)
        check_left(ledger, self.loop, self.drivers, self.work.open_sources)
        spared = not self.settings.stateful  # one failure, as the device's fault
        check_attempts(ledger, self.settings.retries + 1 + ledger.copies + spared)
        if engine is not None:
            inside.check_ended(engine, ledger)
            check_stats(self.dispatcher.stats(), self.kinds, self.work, ledger, self.drivers)
