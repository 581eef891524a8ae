"""A host whose cores several simulated devices share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass

from asyncinfer.errors import ConfigError

__all__ = ("SimulatedHost",)


@dataclass(eq=False)
class _Call:
    """One call that runs on a host."""

    cores: float
    #: ends when every call has done so much work since the host was last idle
    end: float
    done: asyncio.Future[None]


class SimulatedHost:
    """Cores that simulated devices share: each call slows those that run beside it.

    A call that takes ``T`` seconds alone proceeds at the speed ``min(1, cores / demand) /
    (1 + contention * (calls - 1))``, where ``demand`` is the sum of the cores that the calls on the
    host want. The speed changes whenever a call begins or ends, and with :attr:`cores`. All calls
    have the same speed, so that one sum of work done tells when each ends: one timer is set, for
    the next end, and nothing is polled.

    :param cores: how many there are.
    :param contention: how much each further call slows all of them, for what they share besides.
    :param name: the host's name, by which its devices say what they share.
    """

    def __init__(self, cores: float = 2.0, contention: float = 0.0, name: str = "host") -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a simulated host needs a name, a non-empty text, not {name!r}")
        self._name = name
        self._cores = self._above_zero(cores)
        self._contention = amount(f"host {name!r}: contention", contention)
        self._calls: list[_Call] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: the speed from the time ``at`` on; what each call that ran all the while had done by then
        self._speed, self._at, self._work = 1.0, 0.0, 0.0

    @property
    def name(self) -> str:
        """The host's name."""
        return self._name

    @property
    def contention(self) -> float:
        """How much each further call slows all of them."""
        return self._contention

    @property
    def cores(self) -> float:
        """How many there are. May be changed at any time, and takes effect at once."""
        return self._cores

    @cores.setter
    def cores(self, cores: float) -> None:
        cores = self._above_zero(cores)
        self._catch_up()
        self._cores = cores
        self._go_on()

    def speed(self, demands: Iterable[float]) -> float:
        """The speed of each of the calls that want so many cores, if they run beside each other.

        It is 1 for a call that has all it wants.
        """
        wanted = list(demands)
        demand = math.fsum(wanted)
        fair = 1.0 if demand <= self._cores else self._cores / demand
        return fair / (1 + self._contention * max(0, len(wanted) - 1))

    async def run(self, seconds: float, cores: float = 1.0) -> None:
        """Take as long as a call that would take so many ``seconds`` with ``cores`` of its own.

        Cancelled, it leaves the host at once.
        """
        if seconds <= 0:
            return
        call = self._begin(seconds, cores)
        try:
            await call.done
        finally:
            self._leave(call)

    def _begin(self, seconds: float, cores: float) -> _Call:
        loop = asyncio.get_running_loop()
        self._catch_up()
        if self._calls and self._loop is not loop:
            text = "has calls on another event loop: give each loop a host of its own"
            raise ConfigError(f"host {self.name!r} {text}")
        if not self._calls:
            self._loop, self._at, self._work = loop, loop.time(), 0.0
        call = _Call(cores, self._work + seconds, loop.create_future())
        self._calls.append(call)
        self._go_on()
        return call

    def _leave(self, call: _Call) -> None:
        if call in self._calls:
            self._catch_up()
            if call in self._calls:
                self._calls.remove(call)
            self._go_on()

    def _catch_up(self, due: float = 0.0) -> None:
        """Do the work of the time since the last change, and end the calls that it completes.

        :param due: the time that a timer was set for; it may ring a little early.
        """
        if self._loop is None or self._loop.is_closed():
            self._calls.clear()  # with their loop
        if self._loop is None or not self._calls:
            return
        now = max(self._loop.time(), due, self._at)
        while self._calls:
            first = self._first()
            if (end := self._end_of(first)) > now:
                break
            self._at, self._work = max(self._at, end), first.end
            self._calls.remove(first)
            if not first.done.done():
                first.done.set_result(None)
            self._pace()
        self._work += self._speed * (now - self._at)
        self._at = now

    def _go_on(self) -> None:
        """Set the speed, and the timer for the next end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._calls and self._loop is not None:
            self._pace()
            due = self._end_of(self._first())
            self._timer = self._loop.call_at(due, self._ring, due)

    def _ring(self, due: float) -> None:
        self._catch_up(due)
        self._go_on()

    def _pace(self) -> None:
        self._speed = self.speed(call.cores for call in self._calls)

    def _first(self) -> _Call:
        return min(self._calls, key=lambda call: call.end)

    def _end_of(self, call: _Call) -> float:
        """When it ends, if nothing changes before."""
        return self._at + max(0.0, call.end - self._work) / self._speed

    def _above_zero(self, cores: float) -> float:
        if amount(f"host {self._name!r}: cores", cores) == 0:
            raise ConfigError(f"host {self._name!r}: cores must be above 0, not {cores}")
        return cores


def amount(what: str, value: float) -> float:
    """The value, if it is a finite number of 0 or more; else ``ConfigError``."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{what} must be 0 or more, not {value}")
    return value
