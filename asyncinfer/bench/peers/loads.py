"""Closed and open loops over a coroutine function that answers one image.

The peers' own scripts load this file too, in environments without asyncinfer: it imports the
standard library only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ("Call", "Load", "closed_loop", "from_intended", "open_loop", "poisson")

#: from the number of an image to its label
Call: TypeAlias = Callable[[int], Awaitable[int]]

#: seconds that answers may take after the last arrival of an open loop
_GRACE = 3.0


@dataclass
class Load:
    """What came of one load."""

    #: from its start to the last answer
    seconds: float = 0.0
    #: right answers
    finished: int = 0
    #: of each right answer, in seconds
    latencies: list[float] = field(default_factory=list)
    #: requests that failed, or were answered wrongly or too late
    errors: int = 0
    #: what the first of them was
    first_error: str = ""
    #: by how much the client itself was late to start each request of an open loop
    lags: list[float] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Right answers a second."""
        return self.finished / self.seconds if self.seconds else 0.0

    def fail(self, reason: str) -> None:
        """Count one request that failed."""
        self.errors += 1
        self.first_error = self.first_error or reason

    def check(self, answer: int, expected: int, latency: float) -> None:
        """Count one answer."""
        if answer != expected:
            self.fail(f"answered {answer}, expected {expected}")
            return
        self.finished += 1
        self.latencies.append(round(latency, 6))

    def as_message(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))


async def closed_loop(
    call: Call, expected: Sequence[int], *, in_flight: int, seconds: float
) -> Load:
    """Keep ``in_flight`` requests under way for so long: each answer brings the next request."""
    load, started = Load(), time.perf_counter()
    numbers = iter(range(1 << 60))

    async def caller() -> None:
        while (now := time.perf_counter()) - started < seconds:
            number = next(numbers) % len(expected)
            try:
                answer = await call(number)
            except Exception as error:
                load.fail(describe(error))
                await asyncio.sleep(0.01)  # a server that is gone refuses at once
            else:
                load.check(answer, expected[number], time.perf_counter() - now)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(call: Call, expected: Sequence[int], arrivals: Sequence[float]) -> Load:
    """Start request after request at its time, whether or not earlier ones were answered.

    Latency counts from the time a request should have started: one that had to wait because the
    client or the server was behind is not let off (no coordinated omission).
    """
    load, started = Load(), time.perf_counter()

    async def request(number: int, intended: float) -> None:
        load.lags.append(round(time.perf_counter() - intended, 6))
        try:
            answer = await call(number)
        except Exception as error:
            load.fail(describe(error))
        else:
            finished = time.perf_counter()
            load.check(answer, expected[number], from_intended(intended, finished))

    requests = set[asyncio.Task[None]]()
    for position, arrival in enumerate(arrivals):
        intended = started + arrival
        if (early := intended - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        elif position % 64 == 0:
            await asyncio.sleep(0)  # behind: answers are read all the same
        task = asyncio.create_task(request(position % len(expected), intended))
        requests.add(task)
        task.add_done_callback(requests.discard)
    await _settle(requests, load)
    load.seconds = time.perf_counter() - started
    return load


def from_intended(intended: float, finished: float) -> float:
    """Latency as the one who asked sees it: its clock started when the request was due."""
    return finished - intended


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of arrival at ``rate`` a second, independent of each other; the same for a seed."""
    rng, at, arrivals = random.Random(seed), 0.0, list[float]()
    while (at := at + rng.expovariate(rate)) < seconds:
        arrivals.append(at)
    return arrivals


def describe(error: BaseException) -> str:
    """One line about an error."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")


async def _settle(requests: set[asyncio.Task[None]], load: Load) -> None:
    if not requests:
        return
    _, late = await asyncio.wait(requests, timeout=_GRACE)
    for task in late:
        task.cancel()
        load.fail(f"no answer within {_GRACE:g} s of the last arrival")
    await asyncio.gather(*late, return_exceptions=True)
