"""How bytes get to the board and back: a serial port, a pty, TCP, or this process's memory.

A ``Connect`` is all that the link needs: called with a receiver, it gives a ``ByteTransport``. To
use another serial library, write such a function and pass it to the driver as its port. Those for
the ports that have names are made in ``ports``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Protocol, TypeAlias, cast

from asyncinfer_drivers._shared.checking import check

__all__ = (
    "BITS_PER_BYTE",
    "ByteTransport",
    "Connect",
    "MemoryTransport",
    "Receiver",
    "SerialOptions",
    "Stream",
    "memory_pair",
)

#: bits on the line for one byte: start, eight, stop
BITS_PER_BYTE = 10


@dataclass(frozen=True, kw_only=True)
class SerialOptions:
    """How a serial port is opened."""

    #: bits a second
    baudrate: int = 921600
    #: the line DTR while the port is open: asserted by default, as the system itself has it, since
    #: a change resets many boards
    dtr: bool = True
    #: the same for RTS
    rts: bool = True

    def __post_init__(self) -> None:
        given = {option.name: getattr(self, option.name) for option in fields(SerialOptions)}
        check(SerialOptions, given, "serial port")


class Receiver(Protocol):
    """Is told what arrives, on the event loop."""

    def data_received(self, data: bytes) -> None:
        """Some bytes, cut anywhere."""
        ...

    def connection_lost(self, error: Exception | None) -> None:
        """The last call: nothing arrives any more and the port is free again."""
        ...


class ByteTransport(Protocol):
    """One open connection."""

    def write(self, data: bytes) -> None:
        """Send in the background; never blocks, never raises. Dropped once it is lost."""
        ...

    def abort(self) -> None:
        """Drop what is unsent and close; ``connection_lost`` follows. Idempotent."""
        ...


#: opens a connection; raises ``OSError``, ``DeviceError`` or ``ConfigError``
Connect: TypeAlias = Callable[[Receiver], Awaitable[ByteTransport]]


class Stream(asyncio.Protocol):
    """An asyncio connection as a ``ByteTransport``."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._receiver.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._receiver.connection_lost(exc)


class MemoryTransport:
    """One end of a line in memory; what is written arrives at the other end in the next step."""

    def __init__(self) -> None:
        self.receiver: Receiver
        self.peer: MemoryTransport
        self._loop = asyncio.get_running_loop()
        self._arriving: deque[bytes] = deque()
        self._lost = False

    def write(self, data: bytes) -> None:
        """Send; dropped when the line is closed."""
        if not self._lost:
            self.peer.arrive(data)

    def arrive(self, data: bytes) -> None:
        """Hand ``data`` to this end's receiver, in the loop's next step."""
        self._arriving.append(data)
        self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        data = self._arriving.popleft()
        if not self._lost:
            self.receiver.data_received(data)

    def abort(self) -> None:
        """Close both ends."""
        for end in (self, self.peer):
            end.lose(None)

    def lose(self, error: Exception | None) -> None:
        """Close this end, because of ``error``."""
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self.receiver.connection_lost, error)


def memory_pair(one: Receiver, other: Receiver) -> tuple[MemoryTransport, MemoryTransport]:
    """The two ends of a perfect line; ``one`` receives what the second end writes."""
    ends = MemoryTransport(), MemoryTransport()
    for end, peer, receiver in zip(ends, reversed(ends), (one, other), strict=True):
        end.peer, end.receiver = peer, receiver
    return ends
