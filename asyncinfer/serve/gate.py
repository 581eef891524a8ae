"""Admission: what is in work now, and whether more may come in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from asyncinfer.serve.errors import TimedOut, TooLarge, TooMany, Unavailable
from asyncinfer.serve.limits import Limits

__all__ = ("Gate", "Held")


#: seconds that half a request has left to come once the server ends
_MOMENT = 1.0


class Gate:
    """Counts requests, rows and bytes in work, and refuses those past a limit at once."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.rows = 0
        self.streams = 0
        self.bytes = 0
        #: why nothing is admitted, while that is so
        self.closed: str | None = "the server is starting"
        self._idle = asyncio.Event()
        self._idle.set()
        self._receiving: set[asyncio.Timeout] = set()
        self._turns: deque[tuple[int, asyncio.Future[None]]] = deque()

    def enter(self) -> None:
        """Take the place of one request, until ``leave``. Raises ``Unavailable`` or ``TooMany``."""
        if self.closed:
            raise Unavailable(self.closed)
        if self.requests >= self.limits.max_requests:
            raise TooMany(f"{self.requests} requests are in work: try again")
        if self.rows >= self.limits.max_rows:
            raise TooMany(f"{self.rows} rows are in work: try again")
        self.requests += 1
        if self.requests == 1:
            self._idle.clear()

    def leave(self) -> None:
        """Give back the place of one request."""
        self.requests -= 1
        if not self.requests:
            self._idle.set()

    def close(self, reason: str) -> None:
        """Admit nothing more. What has not come whole has a moment left to come."""
        self.closed = reason
        latest = asyncio.get_running_loop().time() + _MOMENT
        for limit in self._receiving:
            when = limit.when()
            limit.reschedule(latest if when is None else min(when, latest))

    def receiving(self) -> _Receiving:
        """Around what waits for a client to send its request: ``async with``.

        Raises ``TimedOut`` after the time for that, ``Unavailable`` if the server ends before.
        """
        return _Receiving(self, self._receiving)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The place of one stream of requests. Raises ``Unavailable`` or ``TooMany``."""
        if self.closed:
            raise Unavailable(self.closed)
        if self.streams >= self.limits.max_streams:
            raise TooMany(f"{self.streams} streams are open: try again")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def add_rows(self, count: int) -> None:
        """Take places for a request's rows. Raises ``TooLarge`` or ``TooMany``."""
        most = min(self.limits.max_batch, self.limits.max_rows)
        if count > most:
            raise TooLarge(f"{count} rows in one request; the server takes {most}")
        if self.rows + count > self.limits.max_rows:
            raise TooMany(f"{self.rows} rows are in work, no place for {count} more: try again")
        self.rows += count

    def hold(self) -> Held:
        """A place for a request's bytes, empty as yet."""
        return Held(self)

    def fits(self, count: int) -> bool:
        """Whether there is room for so many more bytes, before those who wait for theirs."""
        return not self._turns and self.bytes + count <= self.limits.max_total_bytes

    async def room(self, count: int) -> None:
        """Wait until there is room for so many bytes, and take it; first come, first served."""
        if self.fits(count):
            self.bytes += count
            return
        turn = asyncio.get_running_loop().create_future()
        self._turns.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            unused = turn.done() and not turn.cancelled()  # it was given room and cannot use it
            self.give_back(count if unused else 0)  # those behind it may find room as it is
            raise

    def give_back(self, count: int) -> None:
        """So many bytes are free again: those who wait for room may have them."""
        self.bytes -= count
        while self._turns:
            wanted, turn = self._turns[0]
            if not turn.done():
                if self.bytes + wanted > self.limits.max_total_bytes:
                    return
                self.bytes += wanted
                turn.set_result(None)
            self._turns.popleft()

    async def idle(self) -> None:
        """Wait until no request is in work."""
        await self._idle.wait()


class _Receiving:
    """A time limit that ends sooner when the server does; no generator, which would cost more."""

    def __init__(self, gate: Gate, others: set[asyncio.Timeout]) -> None:
        self._gate = gate
        self._others = others
        self._limit = asyncio.timeout(gate.limits.receive_timeout)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._others.add(self._limit)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._others.discard(self._limit)
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._gate.closed:
                raise Unavailable(self._gate.closed) from None
            raise TimedOut("the request did not come within the receive timeout") from None


class Held:
    """The bytes that one request holds; a context manager, which gives them back."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.count = 0

    @property
    def limit(self) -> int:
        """The most that one request may hold."""
        limits = self._gate.limits
        return min(limits.max_request_bytes, limits.max_total_bytes)

    def add(self, count: int) -> None:
        """Take room for more. Raises ``TooLarge`` or ``TooMany``."""
        if self.count + count > self.limit:
            raise TooLarge(f"the request is larger than {self.limit} bytes")
        if not self._gate.fits(count):
            raise TooMany(f"{self._gate.bytes} bytes are in work: try again")
        self._gate.bytes += count
        self.count += count

    async def wait(self, count: int) -> None:
        """Take room for more as soon as there is some."""
        await self._gate.room(count)
        self.count += count

    def only(self, count: int) -> None:
        """Keep room for so many; give back the rest."""
        if count != self.count:
            self._gate.give_back(self.count - count)
            self.count = count

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.only(0)
