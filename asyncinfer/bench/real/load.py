"""Load on one dispatcher: clients that wait for each answer, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from asyncinfer.dispatcher import Dispatcher

__all__ = ("Load", "closed_loop", "open_loop")


@dataclass
class Load:
    """What a load met with."""

    #: calls that the load was to make a second; of a closed loop, those it made
    offered: float = 0.0
    #: from the first call to the last answer
    seconds: float = 0.0
    #: of each call; in an open loop from the time it was to be made
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


async def closed_loop(
    dispatcher: Dispatcher[Any, Any], items: Sequence[Any], *, clients: int, seconds: float
) -> Load:
    """Each client makes its next call when the last is answered."""
    load, inputs, clock = Load(), cycle(items), time.perf_counter
    start = clock()

    async def client() -> None:
        while (called := clock()) < start + seconds:
            await dispatcher.infer(next(inputs))
            load.latencies.append(clock() - called)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    load.seconds = clock() - start
    load.offered = load.rate
    return load


async def open_loop(
    dispatcher: Dispatcher[Any, Any],
    items: Sequence[Any],
    *,
    rate: float,
    seconds: float,
    seed: int,
) -> Load:
    """Poisson arrivals. A call that is late, for whatever reason, has waited since its time."""
    load, inputs, clock = Load(rate), cycle(items), time.perf_counter
    times, draw = [0.0], random.Random(seed)
    while times[-1] < seconds:
        times.append(times[-1] + draw.expovariate(rate))
    start = clock()

    async def call(due: float, x: Any) -> None:
        await dispatcher.infer(x)
        load.latencies.append(clock() - start - due)

    async with asyncio.TaskGroup() as group:
        for due in times:
            if (wait := due - (clock() - start)) > 0:
                await asyncio.sleep(wait)
            group.create_task(call(due, next(inputs)))
    load.seconds = clock() - start
    return load
