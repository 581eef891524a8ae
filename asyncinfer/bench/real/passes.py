"""One pass of real inputs over real devices: what came out, and how."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from asyncinfer.bench.measure import LoopLag, peak_rss
from asyncinfer.bench.real.devices import Opened
from asyncinfer.bench.real.memory import memory_now
from asyncinfer.bench.record import Run
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.result import Result
from asyncinfer.stats import DispatcherStats, percentile

__all__ = ("Case", "Work", "one_pass")

#: tasks of a pass: at least so many full batches a device, so many tasks at least and at most
_BATCHES, _LEAST, _MOST = 4, 8, 10_000


@dataclass(frozen=True)
class Work:
    """A model's inputs, and what is known of the outputs."""

    model: str
    items: Sequence[Any]
    targets: Sequence[Any] | None = None
    #: what one device alone makes of each input; filled when it has
    alone: list[Any] = field(default_factory=list)

    def inputs(self, tasks: int) -> Iterable[Any]:
        """The inputs, again and again."""
        return islice(cycle(self.items), tasks)

    def right(self, outputs: Sequence[Any]) -> float:
        """The share of outputs that are what they should be; ``nan`` if that is not known."""
        return math.nan if self.targets is None else _share(self.targets, outputs)

    def same(self, outputs: Sequence[Any]) -> float:
        """The share of outputs that are those of one device alone."""
        return _share(self.alone, outputs) if self.alone else math.nan


@dataclass(frozen=True)
class Case:
    """Some devices, and the policy that hands out the tasks."""

    devices: Sequence[Opened]
    policy: str = "eft"

    @property
    def title(self) -> str:
        """The devices by name."""
        return " + ".join(device.name for device in self.devices)

    def tasks(self, seconds: float, fastest: float) -> int:
        """As many as they do in about that time, like ones alike.

        ``fastest`` is the rate of the fastest device there is; those within a third of it count as
        being as fast. Slow ones alone get fewer tasks.
        """
        rate = sum(fastest if d.rate > fastest / 3 else d.rate for d in self.devices)
        batches = _BATCHES * max(device.max_batch for device in self.devices)
        if rate < fastest:
            batches = 0
        return min(_MOST, max(_LEAST, batches, int(rate * seconds)))


async def one_pass(case: Case, work: Work, tasks: int) -> tuple[Run, list[Any]]:
    """Stream ``tasks`` inputs; what was measured, and the outputs in order."""
    results: list[Result[Any]] = []
    compared = _compared(case.devices)
    with LoopLag() as lag:
        async with Dispatcher(case.devices, policy=case.policy, wait_for="all") as dispatcher:
            async for result in dispatcher.results(work.inputs(tasks)):
                result.unwrap()
                results.append(result)
            stats = dispatcher.stats()
    if [result.index for result in results] != list(range(tasks)):
        raise AssertionError(f"{work.model} on {case.title}: results are lost or out of order")
    outputs = [result.value for result in results]
    figures = {
        "accuracy": work.right(outputs),
        "same_as_alone": work.same(outputs),
        "loop_lag_p99": lag.p99,
        "loop_lag_worst": lag.worst,
        "memory_mib": memory_now(),
        "max_batch": {device.name: device.max_batch for device in case.devices},
        "tasks": {device.name: device.tasks for device in stats.devices},
        **_exact(case.devices, compared),
    }
    return _run(case, work, results, stats, figures), outputs


def _run(
    case: Case,
    work: Work,
    results: Sequence[Result[Any]],
    stats: DispatcherStats,
    figures: dict[str, Any],
) -> Run:
    makespan = max(r.finished for r in results) - min(r.started for r in results)
    latency = [r.delivered - r.submitted for r in results]
    held = [max(0.0, r.delivered - r.finished) for r in results]
    busy = {device.name: device.busy_seconds for device in stats.devices}
    used = {name: min(1.0, seconds / makespan) for name, seconds in busy.items()}
    return Run(
        suite="real",
        case=f"{work.model}: {case.title}",
        policy=case.policy,
        devices=[device.name for device in case.devices],
        tasks=len(results),
        window=1024,
        queue_size=1024,
        makespan=makespan,
        throughput=len(results) / makespan,
        latency_mean=statistics.fmean(latency),
        latency_p50=percentile(latency, 0.50),
        latency_p95=percentile(latency, 0.95),
        latency_p99=percentile(latency, 0.99),
        hold_mean=statistics.fmean(held),
        hold_p95=percentile(held, 0.95),
        utilisation=used,
        utilisation_mean=statistics.fmean(used.values()),
        max_reorder=stats.max_reorder,
        idle_seconds=max(0.0, len(busy) * makespan - sum(busy.values())),
        peak_rss=peak_rss(),
        figures=figures,
    )


def _share(wanted: Sequence[Any], outputs: Sequence[Any]) -> float:
    """``wanted`` is what should come out, again and again."""
    right = sum(bool(one == other) for one, other in zip(cycle(wanted), outputs, strict=False))
    return right / len(outputs)


def _compared(devices: Sequence[Opened]) -> int:
    return sum(getattr(device.driver, "compared", 0) for device in devices)


def _exact(devices: Sequence[Opened], before: int) -> dict[str, Any]:
    """Whether emulated boards gave what the integer reference gives; nothing without them."""
    now = _compared(devices)
    if now == before:
        return {}
    different = sum(getattr(device.driver, "different", 0) for device in devices)
    return {"bit_exact": different == 0, "compared": now - before}
