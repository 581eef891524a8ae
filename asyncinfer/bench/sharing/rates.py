"""What devices do together in some seconds, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Any

from asyncinfer.bench.record import Run
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver

__all__ = ("Span", "Streaming")


@dataclass(frozen=True)
class Span:
    """Seconds of a measurement: before it begins, and its own."""

    settle: float
    measure: float


class Streaming:
    """A dispatcher with an endless ordered stream, which stands still while nothing is measured."""

    def __init__(
        self, case: str, policy: str, drivers: Sequence[Driver[Any, Any]], items: Sequence[Any]
    ) -> None:
        self._case, self._policy = case, policy
        self._dispatcher = Dispatcher(drivers, wait_for="all")
        self._items = items
        self._goes_on = asyncio.Event()
        self._stack = AsyncExitStack()
        self._consumer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Streaming:
        await self._stack.enter_async_context(self._dispatcher)
        self._consumer = asyncio.create_task(self._consume())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._consumer is not None  # noqa: S101  # it was entered
        self._consumer.cancel()
        await asyncio.wait([self._consumer])
        await self._stack.aclose()
        if not self._consumer.cancelled():
            self._consumer.result()  # raises what ended it too early

    async def _consume(self) -> None:
        async with self._dispatcher.stream(cycle(self._items)) as outputs:
            while True:
                await self._goes_on.wait()
                await anext(outputs)

    async def run(self, seconds: float) -> None:
        """Go on for so long."""
        self._goes_on.set()
        await asyncio.sleep(seconds)
        self._goes_on.clear()

    async def measured(self, span: Span) -> Run:
        """Go on; what was finished in the span, and why devices rest after it."""
        clock = asyncio.get_running_loop().time
        self._goes_on.set()
        await asyncio.sleep(span.settle)
        before, began = self._dispatcher.stats(), clock()
        await asyncio.sleep(span.measure)
        after, took = self._dispatcher.stats(), clock() - began
        self._goes_on.clear()
        pairs = list(zip(before.devices, after.devices, strict=True))
        done = {device.name: device.tasks - earlier.tasks for earlier, device in pairs}
        return Run(
            suite="sharing",
            case=self._case,
            policy=self._policy,
            devices=list(done),
            tasks=sum(done.values()),
            makespan=took,
            throughput=sum(done.values()) / took,
            utilisation={
                device.name: (device.busy_seconds - earlier.busy_seconds) / took
                for earlier, device in pairs
            },
            figures={
                "tasks": done,
                "rests": {device.name: device.rests for device in after.devices if device.rests},
            },
        )
