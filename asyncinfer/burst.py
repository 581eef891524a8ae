"""What a device was handed at once: spans of tasks, run batch by batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

from asyncinfer.device import Device
from asyncinfer.span import Row, Span

__all__ = ("Burst", "give_back")


class Burst:
    """Tasks of one lane handed to a device at once: run one batch after the other."""

    __slots__ = (
        "batch",
        "began",
        "device",
        "generation",
        "inputs",
        "lane",
        "live",
        "outputs",
        "passed_on",
        "runner",
        "since",
        "spans",
        "tasks",
        "timer",
    )

    def __init__(self, device: Device, spans: list[Span], batch: int, now: float) -> None:
        self.device = device
        #: which opening of the device it belongs to
        self.generation = device.generation
        self.lane = spans[0].lane
        self.inputs: list[Any] = list(chain.from_iterable([span.inputs for span in spans]))
        self.batch = batch
        #: those whose outputs were not passed on, or that have none
        self.spans = Row(spans)
        self.tasks = self.spans.tasks
        #: number of tasks whose outputs were passed on, and the outputs after those
        self.passed_on = 0
        self.outputs: list[Any] = []
        #: when its first call started
        self.began = now
        #: when its present call started and the one before ended
        self.since = now
        #: False once its tasks were taken away: what it still brings is ignored
        self.live = True
        self.runner: asyncio.Task[None] | None = None
        #: ends it when a call takes too long
        self.timer: asyncio.TimerHandle | None = None

    def batches(self) -> Iterator[list[Any]]:
        """The inputs of each call, as far as they are not taken away meanwhile."""
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
    def at(self) -> int:
        """Number of tasks that have been run; the next batch is running."""
        return self.passed_on + len(self.outputs)

    @property
    def calls(self) -> int:
        """Number of calls that returned."""
        return -(-self.at // self.batch)

    @property
    def reserved(self) -> int:
        """Number of tasks that were not started."""
        return max(0, self.tasks - self.at - self.batch)

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
            if not span.done:  # else it has an outcome, which stays
                span.outputs = outputs[at : at + span.count]
            at += span.count
        return spans

    @property
    def running(self) -> int:
        """Number of tasks of the present call."""
        return min(self.batch, self.tasks - self.at)

    def share_running(self) -> list[Span]:
        """The tasks of the present call, each by itself: they stay, and may be run elsewhere too.

        All outputs must have been passed on before.
        """
        return self.spans.singles(self.running)

    def take_running(self) -> list[Span]:
        """Remove and return the tasks of the present call, each by itself."""
        return [task for span in self._take(self.batch) for task in span.singles()]

    def take_reserved(self) -> list[Span]:
        """Remove and return the tasks that were not started."""
        reserved = self.reserved
        del self.inputs[self.at + self.batch :]
        return self._take(reserved, self.batch)

    def take_rest(self) -> list[Span]:
        """Remove and return the tasks that have no output."""
        self.inputs.clear()
        return self._take(self.tasks - self.at)

    def _take(self, count: int, behind: int = 0) -> list[Span]:
        """Remove and return ``count`` tasks, from so many ``behind`` those that have been run."""
        spans = self.spans.take(count, len(self.outputs) + behind)
        self.tasks = self.passed_on + self.spans.tasks
        return spans

    def remaining(self, now: float) -> float:
        """Seconds until its batch ends. Once overdue: as long again as it is overdue."""
        expected = self.device.expect(self.running)
        if math.isnan(expected):
            return now - self.since
        return abs(self.since + expected - now)

    @property
    def abandoned(self) -> bool:
        """Whether nobody wants any of its tasks any more."""
        return self.at < self.tasks and all(span.done for span in self.spans)


def give_back(spans: list[Span]) -> None:
    """Return tasks of one lane that were not started."""
    if spans:
        spans[0].lane.give_back(spans)
