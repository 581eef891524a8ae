"""Load on one dispatcher: clients that wait for each answer, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Protocol

__all__ = ("Answers", "Load", "closed_loop", "full_loop", "open_loop")


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


class Answers(Protocol):
    """A dispatcher, or what stands for one."""

    async def infer(self, x: Any, /) -> Any:
        """One answer."""
        ...


async def closed_loop(
    target: Answers, items: Sequence[Any], *, clients: int, seconds: float
) -> Load:
    """Each client makes its next call when the last is answered."""
    load, inputs, clock = Load(), cycle(items), time.perf_counter
    start = clock()

    async def client() -> None:
        while (called := clock()) < start + seconds:
            await target.infer(next(inputs))
            load.latencies.append(clock() - called)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    load.seconds = clock() - start
    load.offered = load.rate
    return load


class _Callers:
    """Make calls in the event loop that they load, and take little of its time.

    A caller whose call was answered makes the next one. A client that makes a task for each call,
    and gives no turn while it is behind, meets with a queue of its own making.
    """

    def __init__(
        self, target: Answers, items: Sequence[Any], group: asyncio.TaskGroup, load: Load
    ) -> None:
        self.load = load
        self.start = time.perf_counter()
        #: calls that are not answered
        self.waiting = 0
        self._target = target
        self._inputs = cycle(items)
        self._group = group
        self._idle: list[asyncio.Future[float | None]] = []

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def call(self, due: float) -> None:
        """Make a call that was to be made then."""
        self.waiting += 1
        if self._idle:
            self._idle.pop().set_result(due)
        else:
            self._group.create_task(self._caller(due))

    async def _caller(self, due: float | None) -> None:
        loop, infer = asyncio.get_running_loop(), self._target.infer
        inputs, idle = self._inputs, self._idle
        while due is not None:
            await infer(next(inputs))
            self.load.latencies.append(self.now - due)
            self.waiting -= 1
            turn: asyncio.Future[float | None] = loop.create_future()
            idle.append(turn)
            due = await turn

    async def end(self) -> None:
        """Wait for the answers."""
        while self.waiting:  # noqa: ASYNC110  # an event would cost each call
            await asyncio.sleep(0.001)
        self.load.seconds = self.now
        for turn in self._idle:
            turn.set_result(None)


async def full_loop(target: Answers, items: Sequence[Any], *, clients: int, seconds: float) -> Load:
    """As ``open_loop``, but a call is due as soon as fewer than ``clients`` are not answered.

    So it tells what rate that client can have.
    """
    load = Load()
    async with asyncio.TaskGroup() as group:
        callers = _Callers(target, items, group, load)
        while (now := callers.now) < seconds:
            while callers.waiting < clients:
                callers.call(now)
            await asyncio.sleep(0)
        await callers.end()
    load.offered = load.rate
    return load


async def open_loop(
    target: Answers, items: Sequence[Any], *, rate: float, seconds: float, seed: int
) -> Load:
    """Poisson arrivals. A call that is late, for whatever reason, has waited since its time."""
    times, draw = [0.0], random.Random(seed)
    while times[-1] < seconds:
        times.append(times[-1] + draw.expovariate(rate))
    async with asyncio.TaskGroup() as group:
        callers, number = _Callers(target, items, group, Load(rate)), 0
        while number < len(times):
            now = callers.now
            while number < len(times) and times[number] <= now:
                callers.call(times[number])
                number += 1
            if number < len(times):
                await asyncio.sleep(times[number] - now)
        await callers.end()
    return callers.load
