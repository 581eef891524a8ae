"""One run of ``asyncinfer run``: inputs go in, rows come out, and a summary is made."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncinfer.cli.inputs import Inputs, Named
from asyncinfer.cli.progress import Progress
from asyncinfer.cli.rows import Write, row_of
from asyncinfer.cli.tools import device_facts, trouble
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver
from asyncinfer.result import Result
from asyncinfer.stats import DispatcherStats

__all__ = ("Session",)


@dataclass
class Session:
    """One run: what goes in, and what has come out so far."""

    drivers: Sequence[Driver[Any, Any]]
    options: Mapping[str, Any]
    source: Inputs
    write: Write
    progress: Progress
    names: dict[int, str] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    right: int = 0
    in_order: bool = True
    first: float = math.inf
    last: float = -math.inf

    async def run(self) -> dict[str, Any]:
        """Stream everything, or what there is until Ctrl-C; return the summary."""
        interrupted = False
        async with Dispatcher(self.drivers, **self.options) as dispatcher:
            try:
                await self._stream(dispatcher)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.uncancel():
                    raise
                interrupted = True
            stats = dispatcher.stats()
            if interrupted:
                await dispatcher.close()
        return self._summary(stats) | {"interrupted": interrupted}

    async def _stream(self, dispatcher: Dispatcher[Any, Any]) -> None:
        targets = self.source.targets()
        with self.progress:
            lines = self.source.lines
            items = self._lines(lines) if lines else self._items()
            async with dispatcher.results(items) as results:
                async for result in results:
                    self._deliver(result, targets)
                    self.progress(dispatcher)

    def _items(self) -> Iterator[Any]:
        for index, (name, item) in enumerate(self.source):
            self.names[index] = name
            yield item

    async def _lines(self, lines: AsyncIterator[Named]) -> AsyncIterator[Any]:
        index = 0
        async for name, item in lines:
            self.names[index] = name
            index += 1
            yield item

    def _deliver(self, result: Result[Any], targets: Iterator[Any] | None) -> None:
        self.in_order = self.in_order and result.index == self.done
        self.done += 1
        self.failed += result.error is not None
        self.first = min(self.first, result.started)
        self.last = max(self.last, result.finished)
        if targets is not None:
            self.right += next(targets) == result.value
        row = row_of(self.names.pop(result.index), result)
        self.write(row | {"index": self.source.skip + result.index})

    def _summary(self, stats: DispatcherStats) -> dict[str, Any]:
        makespan = max(0.0, self.last - self.first) if self.done else 0.0
        known = self.source.targets() is not None and self.done
        reports = {driver.name: _report(driver) for driver in self.drivers}
        return {
            "tasks": self.done,
            "resumed": self.source.skip,
            "failed": self.failed,
            "in_order": self.in_order,
            "seconds": makespan,
            "throughput": self.done / makespan if makespan else 0.0,
            "accuracy": self.right / self.done if known else None,
            "latency": {
                "p50": stats.latency_p50,
                "p95": stats.latency_p95,
                "p99": stats.latency_p99,
            },
            "mean_hold": stats.hold_mean,
            "max_reorder": stats.max_reorder,
            "troubles": {d.name: text for d in stats.devices if (text := trouble(d))},
            "devices": [
                {**device_facts(device, makespan), **reports.get(device.name, {})}
                for device in stats.devices
            ],
            **_merged(list(reports.values())),
        }


def _report(driver: Driver[Any, Any]) -> Mapping[str, Any]:
    """What a driver has to say about its device after a run; most say nothing."""
    report = getattr(driver, "report", None)
    return report() if report is not None else {}


def _merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all drivers said, in one; bit-exact is only what all found to be."""
    merged = {key: value for report in reports for key, value in report.items()}
    exact = (
        {report.get("bit_exact") for report in reports} - {None} if "bit_exact" in merged else set()
    )
    return merged | {"bit_exact": exact == {True}} if exact else merged
