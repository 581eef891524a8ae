"""The promises, whatever devices, sources, consumers and callers do: all of it at random."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import Unusual
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer.errors import (
    ClosedError,
    ConfigError,
    DeviceError,
    DeviceLost,
    InputError,
    PoisonTask,
    ProtocolError,
    TaskError,
)
from asyncinfer.testing import SimulatedDriver

#: PROPERTY_EXAMPLES=20000 looks further, at other examples each time
EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
#: seconds: longer than any call that does not hang
RUN = 20.0

FAULTS = (
    "lost",
    "protocol",
    "connection",
    "model",
    "input",
    "in place",
    "too few",
    "too many",
    "nothing",
    "hang",
    "cancels itself",
    "base",
)


# ---- what is generated


@dataclass
class DevicePlan:
    service_time: float
    noise: float = 0.0
    batch_cost: float = 0.0
    max_batch: int = 1
    concurrency: int = 1
    estimate: float | None = None
    #: what goes wrong at which call
    faults: dict[int, str] = field(default_factory=dict)
    #: openings that fail, by number
    bad_opens: set[int] = field(default_factory=set)
    open_seconds: float = 0.0


@dataclass
class StreamPlan:
    tasks: int
    ordered: bool = True
    #: how it ends: all, break, aclose, raise, cancel, drop
    end: str = "all"
    after: int = 0
    is_async: bool = False
    #: seconds between inputs (async sources), and between results
    source_pause: float = 0.0
    consumer_pause: float = 0.0
    begin: float = 0.0
    source_fails: bool = False


@dataclass
class CallPlan:
    begin: float
    patience: float | None


@dataclass
class PlugPlan:
    at: float
    device: DevicePlan
    stay: float
    drain: bool


@dataclass
class Plan:
    devices: list[DevicePlan]
    streams: list[StreamPlan]
    calls: list[CallPlan]
    plugs: list[PlugPlan]
    window: int
    queue_size: int
    policy: str
    retries: int
    hedge: Hedge | None
    total: float | None
    #: when, and how, the dispatcher is closed under its users
    close_at: float | None
    drain: bool


times = st.sampled_from([0.0, 0.00002, 0.001, 0.01, 0.1, 0.7, 1.0])
moments = st.sampled_from([0.0, 0.0, 0.0005, 0.01, 0.11, 0.5, 1.3, 3.0, 10.0])
devices = st.builds(
    DevicePlan,
    service_time=times,
    noise=st.sampled_from([0.0, 0.0, 0.3]),
    batch_cost=st.sampled_from([0.0, 0.0, 0.05]),
    max_batch=st.integers(1, 4),
    concurrency=st.sampled_from([1, 1, 2, 3]),
    estimate=st.sampled_from([None, None, 0.0001, 5.0]),
    faults=st.dictionaries(st.integers(0, 12), st.sampled_from(FAULTS), max_size=5),
    bad_opens=st.sets(st.integers(0, 4), max_size=3),
    open_seconds=st.sampled_from([0.0, 0.0, 0.2]),
)
streams = st.builds(
    StreamPlan,
    tasks=st.integers(0, 40),
    ordered=st.booleans(),
    end=st.sampled_from(["all", "all", "break", "aclose", "raise", "cancel", "drop"]),
    after=st.integers(0, 20),
    is_async=st.booleans(),
    source_pause=st.sampled_from([0.0, 0.0, 0.05]),
    consumer_pause=st.sampled_from([0.0, 0.0, 0.05]),
    begin=moments,
    source_fails=st.sampled_from([False, False, False, True]),
)
calls = st.builds(CallPlan, begin=moments, patience=st.none() | moments)
plugs = st.builds(PlugPlan, at=moments, device=devices, stay=moments, drain=st.booleans())
plans = st.builds(
    Plan,
    devices=st.lists(devices, min_size=1, max_size=4),
    streams=st.lists(streams, max_size=3),
    calls=st.lists(calls, max_size=6),
    plugs=st.lists(plugs, max_size=2),
    window=st.sampled_from([1, 2, 3, 8, 100]),
    queue_size=st.sampled_from([1, 2, 5, 100]),
    policy=st.sampled_from(["eft", "eft", "eft", "greedy", "static", "sync", "serial"]),
    retries=st.integers(0, 3),
    hedge=st.sampled_from([None, Hedge(), Hedge(quantile=0.1, budget=1.0, least=1e-4)]),
    total=st.sampled_from([None, None, 5.0]),
    close_at=st.none() | st.none() | moments,
    drain=st.booleans(),
)


# ---- who watches


class Watcher(SimulatedDriver):
    """A simulated device that goes wrong as planned, and notes what the dispatcher does wrong."""

    def __init__(self, name: str, plan: DevicePlan, wrongs: list[str]) -> None:
        super().__init__(
            name,
            plan.service_time,
            noise=plan.noise,
            batch_cost=plan.batch_cost,
            max_batch=plan.max_batch,
            concurrency=plan.concurrency,
            estimate=plan.estimate,
        )
        self.plan = plan
        self.wrongs = wrongs
        self.opens = self.calls = self.running = 0

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrongs.append(f"{self.name}: {what}")

    async def open(self) -> None:
        self.check(not self.is_open, "opened twice")
        self.check(not self.running, "opened while a call runs")
        number = self.opens
        self.opens += 1
        await asyncio.sleep(self.plan.open_seconds)
        if number in self.plan.bad_opens:
            raise DeviceLost(self.name, f"opening {number} fails as planned")
        await super().open()

    async def close(self) -> None:
        self.check(not self.running, "closed while a call runs")
        await super().close()

    async def infer(self, batch: Any) -> Any:
        self.check(self.is_open, "called while not open")
        self.check(0 < len(batch) <= self.max_batch, f"called with {len(batch)} inputs")
        self.check(self.running < self.concurrency, "too many calls at once")
        number = self.calls
        self.calls += 1
        self.running += 1
        try:
            outputs = [("done", x) for x in await super().infer(batch)]
            return await self.go_wrong(self.plan.faults.get(number), outputs)
        finally:
            self.running -= 1

    async def go_wrong(self, fault: str | None, outputs: list[Any]) -> Any:
        raised = {
            "lost": DeviceLost(self.name, "lost"),
            "protocol": ProtocolError(self.name, "garbled"),
            "connection": ConnectionResetError("reset"),
            "model": ValueError("the model raises"),
            "input": InputError("a bad input"),
            "cancels itself": asyncio.CancelledError(),
            "base": Unusual(),
        }
        if fault in raised:
            raise raised[fault]
        if fault == "hang":
            await asyncio.sleep(1e5)
        elif fault == "in place":
            outputs[-1] = ValueError("in its place")
        elif fault == "too few":
            outputs = outputs[:-1]
        elif fault == "too many":
            outputs = [*outputs, outputs[0]]
        return None if fault == "nothing" else outputs


class Run:
    """One plan in progress."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.wrongs: list[str] = []
        self.read = Counter[int]()
        self.delivered = Counter[int]()
        self.drivers = [Watcher(f"d{i}", d, self.wrongs) for i, d in enumerate(plan.devices)]
        self.dispatcher = Dispatcher[Any, Any](
            self.drivers,
            policy=plan.policy,
            window=plan.window,
            queue_size=plan.queue_size,
            retries=plan.retries,
            hedge=plan.hedge,
            timeout=Timeouts(run=RUN, total=plan.total, close=3.0, drain=2000.0),
            on_event=self.on_event,
        )
        self.ended = Counter[str]()
        #: a task of which a copy was run may have failed there too
        self.tries = plan.retries + 1

    def on_event(self, event: Any) -> None:
        self.ended[event.kind] += 1
        room = self.plan.window + self.plan.queue_size
        for stream, read in self.read.items():
            if read - self.delivered[stream] > room:
                self.wrongs.append(f"stream {stream}: {read} read, {self.delivered[stream]} out")

    # ---- sources

    def source(self, number: int, plan: StreamPlan) -> Any:
        return self.async_source(number, plan) if plan.is_async else self.sync_source(number, plan)

    def sync_source(self, number: int, plan: StreamPlan) -> Any:
        for i in range(plan.tasks):
            self.read[number] += 1
            yield number, i
        if plan.source_fails:
            raise LookupError(number)

    async def async_source(self, number: int, plan: StreamPlan) -> Any:
        for item in self.sync_source(number, plan):
            await asyncio.sleep(plan.source_pause)
            yield item

    # ---- consumers

    async def consume(self, number: int, plan: StreamPlan) -> None:
        await asyncio.sleep(plan.begin)
        got: list[Any] = []
        reading = asyncio.create_task(self.read_results(number, plan, got))
        if plan.end == "cancel":
            await asyncio.wait([reading], timeout=plan.after * 0.1)
            reading.cancel()
        await asyncio.wait([reading])
        error = None if reading.cancelled() else reading.exception()
        self.check_results(number, plan, got)
        if self.dispatcher_closes and isinstance(error, ClosedError):
            return
        if isinstance(error, LookupError):
            assert plan.source_fails
            assert len(got) == plan.tasks
            return
        if error is not None:
            raise error
        if plan.end == "all":
            assert len(got) == plan.tasks
            assert not plan.source_fails

    async def read_results(self, number: int, plan: StreamPlan, got: list[Any]) -> None:
        stream = self.dispatcher.results(self.source(number, plan), ordered=plan.ordered)
        try:
            async for result in stream:
                self.delivered[number] += 1
                got.append(result)
                if plan.consumer_pause:
                    await asyncio.sleep(plan.consumer_pause)
                if plan.end in ("break", "aclose", "raise", "drop") and len(got) > plan.after:
                    break
        finally:
            if plan.end == "raise":
                await stream.aclose()
        if plan.end == "aclose":
            await stream.aclose()

    def check_results(self, number: int, plan: StreamPlan, got: list[Any]) -> None:
        indices = [result.index for result in got]
        if plan.ordered:
            assert indices == list(range(len(got)))
        assert len(set(indices)) == len(got)
        for result in got:
            if result.error is None:
                assert result.value == ("done", (number, result.index))
                assert 1 <= result.attempts <= self.tries
                assert result.submitted <= result.started <= result.finished <= result.delivered
            else:
                self.check_error(result.error, result.index)

    def check_error(self, error: TaskError, index: int) -> None:
        assert error.index == index
        spared = len(error.causes) - error.attempts
        # two copies may fail besides, and one attempt is spared as the device's fault
        assert 0 <= spared <= 3
        assert len(error.causes) == len(error.devices)
        assert error.attempts <= self.tries
        if isinstance(error, PoisonTask):
            assert len(set(error.devices)) >= 3
        if type(error) is TaskError:
            given_up = error.attempts > self.plan.retries
            assert given_up or any(isinstance(cause, InputError) for cause in error.causes)

    # ---- callers, and those who plug devices in and out

    async def call(self, number: int, plan: CallPlan) -> None:
        await asyncio.sleep(plan.begin)
        try:
            async with asyncio.timeout(plan.patience):
                assert await self.dispatcher.infer(number) == ("done", number)
        except TaskError as error:
            self.check_error(error, error.index)
        except TimeoutError:
            assert plan.patience is not None
        except ClosedError:
            assert self.dispatcher_closes

    async def plug(self, number: int, plan: PlugPlan) -> None:
        await asyncio.sleep(plan.at)
        driver = Watcher(f"extra{number}", plan.device, self.wrongs)
        self.drivers.append(driver)
        try:
            await self.dispatcher.add(driver)
            await asyncio.sleep(plan.stay)
            await self.dispatcher.remove(driver.name, drain=plan.drain)
            assert not driver.is_open
        except DeviceError:
            assert plan.device.bad_opens
        except (ClosedError, ConfigError):
            assert self.dispatcher_closes

    # ---- the whole

    @property
    def dispatcher_closes(self) -> bool:
        return self.plan.close_at is not None

    async def close(self) -> None:
        if self.plan.close_at is not None:
            await asyncio.sleep(self.plan.close_at)
            if self.plan.drain:
                await self.dispatcher.drain()
            await self.dispatcher.close()

    async def work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, stream in enumerate(self.plan.streams):
                group.create_task(self.consume(number, stream))
            for number, call in enumerate(self.plan.calls):
                group.create_task(self.call(number, call))
            for number, plug in enumerate(self.plan.plugs):
                group.create_task(self.plug(number, plug))
            group.create_task(self.close())

    async def __call__(self) -> None:
        dispatcher = self.dispatcher
        if all(0 in plan.bad_opens for plan in self.plan.devices):
            with pytest.raises(DeviceLost):
                await dispatcher.__aenter__()
        else:
            async with dispatcher:
                await self.work()
                if not self.dispatcher_closes:
                    await self.check_usable()
                begun = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - begun < 1e-3, "something was left to drain"
            self.check_stats()
        assert self.wrongs == []
        assert [driver.name for driver in self.drivers if driver.is_open] == []

    async def check_usable(self) -> None:
        """Faults are finite, so a call succeeds in the end."""
        for _ in range(100):
            try:
                assert await self.dispatcher.infer("last") == ("done", "last")
            except TaskError:
                continue
            return
        pytest.fail("no call succeeds")

    def check_stats(self) -> None:
        stats = self.dispatcher.stats()
        now = (stats.queue_depth, stats.waiting, stats.running, stats.reorder_buffer)
        assert now == (0, 0, 0, 0)
        assert stats.failed == self.ended["task.failed"]
        assert stats.retried == self.ended["task.retried"]
        assert stats.quarantined == self.ended["task.quarantined"]
        copies = stats.hedging
        assert copies.started == copies.won + copies.lost + copies.cancelled
        assert copies.started == self.ended["task.hedged"]
        assert copies.seconds >= 0
        held = self.plan.window
        if self.plan.total or self.plan.drain:  # ended while queued, or let out of the queue
            held += self.plan.queue_size
        assert stats.max_reorder <= held * len(self.plan.streams)


@settings(
    max_examples=EXAMPLES or 300,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(plans)
def test_whatever_happens_every_promise_holds(virtual, plan):
    virtual(Run(plan)())
