"""Runs the real dispatcher on simulated devices, in virtual or in real time."""

from __future__ import annotations

import asyncio
import math
import random
import time
from array import array
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from asyncinfer import theory
from asyncinfer._optional import run_async
from asyncinfer._text import seconds
from asyncinfer.bench.measure import peak_rss
from asyncinfer.bench.record import Run
from asyncinfer.bench.simulated.hosts import Place, Sharing, sharings
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver
from asyncinfer.errors import AsyncInferError
from asyncinfer.events import EventHook
from asyncinfer.stats import DispatcherStats, percentile
from asyncinfer.testing import SimulatedDriver, run_virtual

__all__ = ("Observed", "Plan", "Throttle", "observe", "simulate")


@dataclass(frozen=True)
class Throttle:
    """A device that becomes slower during the run."""

    #: its place among the devices, from 0
    position: int
    #: how many times slower
    factor: float
    #: seconds from the start
    after: float


@dataclass(frozen=True)
class Plan:
    """What to simulate. Times are seconds."""

    service_times: Sequence[float]
    tasks: int = 1000
    window: float = 1024
    noise: float = 0.0
    policy: str = "eft"
    seed: int = 42
    queue_size: float = 1024
    #: the first estimates are this many times the truth
    estimate: float = 1.0
    #: tasks a second of a live source, by Poisson; all are there from the start if 0
    arrivals: float = 0.0
    throttle: Throttle | None = None
    #: whether overdue tasks are copied to another device
    hedge: bool = False
    #: names of the devices; made from their service times if empty
    names: Sequence[str] = ()
    #: the host of each device, if they are on hosts; ``None`` for one that has its own
    places: Sequence[Place | None] = ()

    @cached_property
    def sharings(self) -> Sequence[Sharing]:
        """What the devices of each host can do together."""
        return sharings(self.service_times, self.places)

    @cached_property
    def best_times(self) -> Sequence[float]:
        """Seconds per task of those devices that do most together, beside one another."""
        placed = self.places or [None] * len(self.service_times)
        alone = [t for t, at in zip(self.service_times, placed, strict=True) if at is None]
        return alone + [t for sharing in self.sharings for t in sharing.service_times]

    @cached_property
    def optimum(self) -> float:
        """The least makespan for the mean service times, without any order.

        Where devices share hosts, no schedule is shorter, and the best may be a task longer.
        """
        if not self.places:
            return theory.optimum_makespan(self.service_times, self.tasks)
        return max(self.tasks / self.total_rate, min(self.service_times))

    @property
    def total_rate(self) -> float:
        """Tasks a second with every device always busy; of each host, those that do most."""
        return theory.total_rate(self.best_times)

    @cached_property
    def windowed_optimum(self) -> float:
        """The least makespan to expect of results that complete in order in the window."""
        window = int(min(self.window, self.tasks))
        return theory.windowed_makespan(self.best_times, self.tasks, window)

    @cached_property
    def window_needed(self) -> int:
        """The window from which every device can take part; of each host, those that do most."""
        return theory.window_needed(self.best_times)

    def drivers(self) -> list[SimulatedDriver]:
        """The devices."""
        times = self.service_times
        places = self.places or [None] * len(times)
        hosts = [f"@{place.host.name}" if place else "" for place in places]
        named = enumerate(zip(times, hosts, strict=True), 1)
        names = self.names or [f"{n}: {seconds(t)}{host}" for n, (t, host) in named]
        noise: dict[str, Any] = {"noise": self.noise, "seed": self.seed}
        return [
            SimulatedDriver(
                name, t, estimate=t * self.estimate, **noise, **(place._asdict() if place else {})
            )
            for name, t, place in zip(names, times, places, strict=True)
        ]


@dataclass
class Observed:
    """What one run showed. Times are seconds on the event loop's clock."""

    stats: DispatcherStats
    #: from the first start to the last end
    makespan: float
    #: from acceptance, or from the intended start if the source was live, to delivery
    latencies: Sequence[float]
    #: from the start on a device to delivery
    responses: Sequence[float]
    #: from the end on a device to delivery
    holds: Sequence[float]
    #: of the processor, from the first task to the last
    cpu_seconds: float

    @property
    def devices(self) -> list[str]:
        """Their names."""
        return [device.name for device in self.stats.devices]

    @property
    def tasks(self) -> int:
        """How many results came."""
        return len(self.latencies)

    @property
    def busy(self) -> dict[str, float]:
        """Seconds in which each device had something to do."""
        return {device.name: device.busy_seconds for device in self.stats.devices}

    @property
    def utilisation(self) -> float:
        """Busy seconds / (devices x makespan)."""
        return sum(self.busy.values()) / (len(self.devices) * self.makespan)

    @property
    def throughput(self) -> float:
        """Tasks per second."""
        return self.tasks / self.makespan

    @property
    def hold_mean(self) -> float:
        """Mean seconds a finished result waited for an earlier one."""
        return mean(self.holds)

    def run(self, suite: str, case: str, plan: Plan, *, run: int = 1, **figures: Any) -> Run:
        """Its row in the CSV."""
        live = plan.arrivals > 0
        responses = {
            "response_mean": mean(self.responses),
            **{f"response_p{q}": percentile(self.responses, q / 100) for q in (50, 95, 99)},
        }
        return Run(
            suite=suite,
            case=case,
            policy=plan.policy,
            devices=self.devices,
            tasks=self.tasks,
            window=plan.window,
            queue_size=plan.queue_size,
            noise=plan.noise,
            seed=plan.seed,
            run=run,
            makespan=self.makespan,
            optimum=math.nan if live else plan.optimum,
            ratio=math.nan if live else self.makespan / plan.optimum,
            throughput=self.throughput,
            latency_mean=mean(self.latencies),
            latency_p50=percentile(self.latencies, 0.50),
            latency_p95=percentile(self.latencies, 0.95),
            latency_p99=percentile(self.latencies, 0.99),
            hold_mean=self.hold_mean,
            hold_p95=percentile(self.holds, 0.95),
            utilisation={name: busy / self.makespan for name, busy in self.busy.items()},
            utilisation_mean=self.utilisation,
            max_reorder=self.stats.max_reorder,
            idle_seconds=len(self.devices) * self.makespan - sum(self.busy.values()),
            peak_rss=peak_rss(),
            figures=responses | figures,
        )


def mean(values: Sequence[float]) -> float:
    """The mean; ``nan`` of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def simulate(plan: Plan, *, virtual: bool = True, on_event: EventHook | None = None) -> Observed:
    """Run ``plan``: on a virtual clock, where hours take seconds, or for as long as it takes."""
    run = run_virtual if virtual else run_async
    return run(_simulated(plan, on_event))


async def _simulated(plan: Plan, on_event: EventHook | None) -> Observed:
    drivers = plan.drivers()
    if plan.throttle:
        throttled = drivers[plan.throttle.position]
        slower = throttled.service_time * plan.throttle.factor
        loop = asyncio.get_running_loop()
        loop.call_later(plan.throttle.after, setattr, throttled, "service_time", slower)
    intended: list[float] | None = [] if plan.arrivals else None
    items = range(plan.tasks) if intended is None else _arrivals(plan, intended)
    return await observe(
        drivers,
        items,
        intended=intended,
        policy=plan.policy,
        window=plan.window,
        queue_size=plan.queue_size,
        hedge=plan.hedge,
        on_event=on_event,
    )


async def observe(
    drivers: Iterable[Driver[Any, Any]],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    intended: Sequence[float] | None = None,
    **options: Any,
) -> Observed:
    """Stream ``items`` through a dispatcher made with ``options``, and keep what happened.

    ``intended``: when each item was due, for live sources; it may grow meanwhile. Raises
    ``AsyncInferError`` if results come out of order or a task fails.
    """
    dispatcher = Dispatcher(drivers, wait_for="all", **options)
    submitted, started, finished, delivered = (array("d") for _ in range(4))
    async with dispatcher:
        began = time.process_time()
        async for result in dispatcher.results(items):
            if result.index != len(delivered):
                raise AsyncInferError(f"task {result.index} came in place of {len(delivered)}")
            result.unwrap()
            submitted.append(result.submitted)
            started.append(result.started)
            finished.append(result.finished)
            delivered.append(result.delivered)
        cpu_seconds = time.process_time() - began
        stats = dispatcher.stats()
    return Observed(
        stats=stats,
        makespan=max(finished) - min(started),
        latencies=_differences(delivered, submitted if intended is None else intended),
        responses=_differences(delivered, started),
        holds=_differences(delivered, finished),
        cpu_seconds=cpu_seconds,
    )


def _differences(later: Iterable[float], earlier: Iterable[float]) -> Sequence[float]:
    return array("d", [end - begin for end, begin in zip(later, earlier, strict=True)])


async def _arrivals(plan: Plan, intended: list[float]) -> AsyncIterator[int]:
    """Numbers at random moments, Poisson; late ones keep the moment at which they were due."""
    chance = random.Random(f"{plan.seed}/arrivals")
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(plan.tasks):
        due += chance.expovariate(plan.arrivals)
        intended.append(due)
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        yield number
