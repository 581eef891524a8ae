"""A device that only takes time: for tests, simulations and benchmarks of the scheduling."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

from asyncinfer.driver import Driver, ServiceTime, shared_names
from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer.testing.host import SimulatedHost, amount

__all__ = ("SimulatedDriver",)

#: decides whether a task fails: a chance per call, or a function of the input
Fail = float | Callable[[Any], object]


class SimulatedDriver(Driver[Any, Any]):
    """Returns its input, or ``function(input)``, after a stated time on the event loop's clock.

    :param name: the device's name.
    :param service_time: mean seconds per task. May be changed while running, to simulate drift.
    :param noise: sigma of a log-normal factor of mean 1 on every call's time.
    :param seed: of the noise and of random failures.
    :param batch_cost: seconds each call costs on top, whatever its size.
    :param max_batch: most tasks per call.
    :param fail: a number is the chance that a call loses the device (``DeviceLost``). A function is
        asked for every input: an exception it returns is that task's fault, ``True`` loses the
        device, anything else is success.
    :param function: what the device computes.
    :param concurrency: calls in flight at once, each taking its own time.
    :param max_wait: seconds a task may wait for a fuller batch.
    :param latency_target: seconds one call should take at most; bounds the batch.
    :param estimate: seconds per task that it claims when calibrated; by default ``service_time``.
    :param host: where its calls run, and slow those of other devices there. The times above are
        those of a call that is alone there and has the cores it wants.
    :param cores: so many of the host's a call wants.
    :param shares: see :class:`Driver`; by default the host's name, or nothing.
    """

    def __init__(
        self,
        name: str,
        service_time: float,
        *,
        noise: float = 0.0,
        seed: int = 42,
        batch_cost: float = 0.0,
        max_batch: int = 1,
        fail: Fail | None = None,
        function: Callable[[Any], Any] | None = None,
        concurrency: int = 1,
        max_wait: float = 0.0,
        latency_target: float | None = None,
        estimate: float | None = None,
        host: SimulatedHost | None = None,
        cores: float = 1.0,
        shares: str | Collection[str] | None = None,
    ) -> None:
        amounts = {"service_time": service_time, "batch_cost": batch_cost, "cores": cores}
        for what, value in amounts.items():
            amount(f"device {name!r}: {what}", value)
        if not (host is None or isinstance(host, SimulatedHost)):
            raise ConfigError(f"device {name!r}: host must be a SimulatedHost, not {host!r}")
        self.name = name
        self.service_time = service_time
        self.noise = noise
        self.batch_cost = batch_cost
        self.max_batch = max_batch
        self.concurrency = concurrency
        self.max_wait = max_wait
        self.latency_target = latency_target
        self.host = host
        self.cores = cores
        if shares is None:
            shares = () if host is None else (host.name,)
        #: names of what it shares with others: see :class:`Driver`
        self.shares: str | Collection[str] = shared_names(shares, f"device {name!r}")
        self.is_open = False
        self._estimate = estimate
        self._fail = fail
        self._function = function
        self._random = random.Random(f"{seed}/{name}")

    async def open(self) -> None:
        """Open at once."""
        self.is_open = True

    async def close(self) -> None:
        """Close at once."""
        self.is_open = False

    async def calibrate(self) -> ServiceTime:
        """Return the stated figures: nothing needs to be timed."""
        per_task = self.service_time if self._estimate is None else self._estimate
        return ServiceTime(self.batch_cost, per_task)

    async def probe(self) -> None:
        """Raise ``DeviceLost`` unless open."""
        if not self.is_open:
            raise DeviceLost(self.name, "is not open")

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Sleep for the batch's time, then return one output per input."""
        if not self.is_open:
            raise DeviceLost(self.name, "is not open")
        seconds = self.batch_cost + self.service_time * len(batch)
        if self.noise:
            seconds *= self._random.lognormvariate(-self.noise * self.noise / 2, self.noise)
        if self.host is not None:
            await self.host.run(seconds, self.cores)
        elif seconds:
            await asyncio.sleep(seconds)
        if self._fail is None and self._function is None:
            return batch
        return [self._one(x) for x in batch]

    def _one(self, x: Any) -> Any:
        fail = self._fail
        outcome = fail(x) if callable(fail) else fail is not None and self._random.random() < fail
        if outcome is True:
            raise DeviceLost(self.name, "was lost (simulated)")
        if isinstance(outcome, BaseException):
            return outcome
        return x if self._function is None else self._function(x)
