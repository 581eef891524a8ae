"""Devices that note what is asked of them, or go wrong in one way: what the core's tests share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from asyncinfer.testing import SimulatedDriver

#: how a call may end: it raises this, or this makes its outputs from the good ones
End = BaseException | Callable[[list[Any]], Any]
#: what happens in an opening or a closing: it takes so many seconds, or raises this
Door = float | BaseException


class Unusual(BaseException):
    """Neither an Exception nor one that asyncio knows."""


def now() -> float:
    """The event loop's time."""
    return asyncio.get_running_loop().time()


async def deaf(work: Awaitable[Any], *, forgets: bool = True) -> Any:
    """Await ``work`` to its end, whoever cancels that; then forget it, or be cancelled."""
    running, cancelled = asyncio.ensure_future(work), False
    while not running.done():
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not forgets:
        raise asyncio.CancelledError
    return running.result()


def simulated(times: Iterable[float], **options: Any) -> list[SimulatedDriver]:
    """Well-behaved ones, called d0, d1 ..., each with its service time."""
    return [SimulatedDriver(f"d{at}", seconds, **options) for at, seconds in enumerate(times)]


class Noting(SimulatedDriver):
    """Notes its openings, closings and calls, how many run, and which were cancelled.

    What it does in them is said by those below in ``opening``, ``closing`` and ``work``.
    """

    def __init__(self, name: str = "a", service_time: float = 0.1, **options: Any) -> None:
        super().__init__(name, service_time, **options)
        self.opened_at: list[float] = []
        self.closes = self.running = 0
        self.called_at: list[float] = []
        self.batches: list[list[Any]] = []
        self.cancelled: list[list[Any]] = []

    @property
    def opens(self) -> int:
        return len(self.opened_at)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    def forget(self) -> None:
        """Keep none of the inputs it has noted."""
        self.batches.clear()
        self.cancelled.clear()

    async def opening(self) -> None:
        """Before it is open."""

    async def closing(self) -> None:
        """Before it is closed."""

    async def work(self, batch: Sequence[Any]) -> Any:
        return await super().infer(batch)

    async def open(self) -> None:
        self.opened_at.append(now())
        await self.opening()
        await super().open()

    async def close(self) -> None:
        self.closes += 1
        await self.closing()
        await super().close()

    async def infer(self, batch: Sequence[Any]) -> Any:
        self.called_at.append(now())
        self.batches.append(list(batch))
        self.running += 1
        try:
            return await self.work(batch)
        except asyncio.CancelledError:
            self.cancelled.append(list(batch))
            raise
        finally:
            self.running -= 1


class Unknown(SimulatedDriver):
    """Cannot say how long a call takes."""

    async def calibrate(self) -> None:  # type: ignore[override]
        return None


class Cold:
    """Not calibrated: ``each`` a task and ``once`` a call, and ``cold`` more for the first call.

    With a ``host`` a call wants ``cores`` of it, and shares it with others.
    """

    concurrency = 1

    def __init__(
        self, name, each, cold=0.0, *, once=0.0, max_batch=1, host=None, cores=1.0, effects=False
    ):
        self.name, self.each, self.cold, self.once = name, each, cold, once
        self.max_batch, self.host, self.cores = max_batch, host, cores
        self.shares, self.side_effects = [host.name] if host else [], effects
        self.calls = 0

    async def open(self):
        pass

    async def close(self):
        pass

    async def infer(self, batch):
        self.calls += 1
        seconds = self.once + self.each * len(batch) + (self.cold if self.calls == 1 else 0.0)
        await (self.host.run(seconds, self.cores) if self.host else asyncio.sleep(seconds))
        return list(batch)


class Doored(Noting):
    """Its openings fail or take time as listed, and all of its closings do alike."""

    def __init__(
        self,
        name: str,
        service_time: float = 0.1,
        openings: Iterable[Door] = (),
        closings: Door = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(name, service_time, **options)
        self.openings, self.closings = list(openings), closings

    async def opening(self) -> None:
        await _passed(self.openings.pop(0) if self.openings else 0.0)

    async def closing(self) -> None:
        await _passed(self.closings)


async def _passed(door: Door) -> None:
    if isinstance(door, BaseException):
        raise door
    if door:
        await asyncio.sleep(door)


class Faulty(Noting):
    """Its calls go wrong as listed, one after the other; ``None`` is one that does not."""

    def __init__(
        self, name: str, service_time: float, faults: Iterable[End | None] = (), **options: Any
    ) -> None:
        super().__init__(name, service_time, **options)
        self.faults = list(faults)

    async def work(self, batch: Sequence[Any]) -> Any:
        fault = self.faults.pop(0) if self.faults else None
        return _ended(fault, list(await super().work(batch)))


def _ended(end: End | None, outputs: list[Any]) -> Any:
    if isinstance(end, BaseException):
        raise end
    return outputs if end is None else end(outputs)


class Uneven(Noting):
    """Takes other ``seconds`` for some inputs, and ``ends`` in another way with some."""

    def __init__(
        self,
        name: str,
        service_time: float,
        seconds: Mapping[Any, float] | Iterable[tuple[Any, float]] = (),
        **options: Any,
    ) -> None:
        super().__init__(name, service_time, **options)
        self.seconds = dict(seconds)
        self.ends: dict[Any, End] = {}

    async def work(self, batch: Sequence[Any]) -> Any:
        usual = self.service_time * len(batch)
        await asyncio.sleep(max(self.seconds.get(x, usual) for x in batch))
        end = next((self.ends[x] for x in batch if x in self.ends), None)
        return _ended(end, [self.answer(x) for x in batch])

    def answer(self, x: Any) -> Any:
        return x


class Picky(Noting):
    """Raises if it ``refuses`` a batch, as a model of stacked inputs would."""

    def __init__(
        self,
        name: str,
        service_time: float,
        refuses: Callable[[Sequence[Any]], object],
        **options: Any,
    ) -> None:
        super().__init__(name, service_time, **options)
        self.refuses = refuses

    async def work(self, batch: Sequence[Any]) -> Any:
        outputs = await super().work(batch)
        if self.refuses(batch):
            raise ValueError(f"cannot stack {len(batch)}")
        return outputs


class Stalling(SimulatedDriver):
    """Takes 20 times as long for some calls, at random."""

    def __init__(self, name: str, service_time: float, chance: float) -> None:
        super().__init__(name, service_time)
        self.chance, self.dice = chance, random.Random(42)

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        if self.dice.random() < self.chance:
            await asyncio.sleep(19 * self.service_time)
        return await super().infer(batch)


class Deaf(Noting):
    """Its calls take ``seconds``, whoever cancels them; those before the ``first`` take none."""

    def __init__(self, name: str, service_time: float, seconds: float, first: int = 1) -> None:
        super().__init__(name, service_time)
        self.seconds, self.first = seconds, first

    async def work(self, batch: Sequence[Any]) -> Any:
        assert self.is_open
        if len(self.batches) < self.first:
            return batch
        await deaf(asyncio.sleep(self.seconds))
        return ["late"] * len(batch)


class Wedged(Noting):
    """The methods in ``where`` do not end before ``release``, whoever cancels them."""

    def __init__(self, name: str, *where: str, service_time: float = 0.1, **options: Any) -> None:
        super().__init__(name, service_time, **options)
        self.where = set(where)
        self.free = asyncio.Event()

    async def opening(self) -> None:
        await self._wait("open")

    async def closing(self) -> None:
        await self._wait("close")

    async def work(self, batch: Sequence[Any]) -> Any:
        if await self._wait("infer"):
            return ["late"] * len(batch)
        return await super().work(batch)

    async def _wait(self, where: str) -> bool:
        waits = where in self.where
        if waits:
            await deaf(self.free.wait())
        return waits

    async def release(self) -> None:
        self.where.clear()
        self.free.set()
        await asyncio.sleep(0.01)
