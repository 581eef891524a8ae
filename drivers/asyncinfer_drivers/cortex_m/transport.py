"""How bytes get to the board and back: a serial port, a pty, TCP, or this process's memory.

A ``Connect`` is all that the link needs: called with a receiver, it gives a ``ByteTransport``. To
use another serial library, write such a function and pass it to the driver as its port.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias, cast
from urllib.parse import urlsplit

from asyncinfer.errors import ConfigError, DeviceLost

__all__ = (
    "ByteTransport",
    "Connect",
    "MemoryTransport",
    "Receiver",
    "SerialOptions",
    "Stream",
    "connector",
    "is_serial",
    "memory_pair",
)

#: before a serial port's name: open it by serialx
SERIALX = "serialx://"

#: ``baudrate``, ``dtr`` and ``rts`` of a serial port
SerialOptions: TypeAlias = tuple[int, bool, bool]


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


def is_serial(port: str) -> bool:
    """Whether ``port`` is a serial port's (or pty's) name, not an address in a network."""
    return "://" not in port or port.startswith(SERIALX)


def connector(name: str, port: str, options: SerialOptions) -> Connect:
    """The ``Connect`` for ``tcp://host:port`` or a serial port's (or pty's) name.

    ``serialx://`` before the name chooses ``serialx``, which Windows always has.
    """
    path = port.removeprefix(SERIALX)
    if not path:
        raise ConfigError(f"{name}: port must be a serial port or tcp://host:port, not {port!r}")
    if "://" in path:
        return _tcp(name, port)
    if path != port or sys.platform == "win32":
        return _by_serialx(name, path, options)

    async def connect(receiver: Receiver) -> ByteTransport:
        try:
            from asyncinfer_drivers.cortex_m.serial_port import open_serial
        except ModuleNotFoundError as error:
            command = "pip install 'asyncinfer[serial]'"
            raise ConfigError(f"{name}: {error.name} is not installed: {command}") from error
        return await open_serial(name, port, options, receiver)

    return connect


def _by_serialx(name: str, port: str, options: SerialOptions) -> Connect:
    async def connect(receiver: Receiver) -> ByteTransport:
        try:
            from asyncinfer_drivers.cortex_m.serialx_port import open_serialx
        except ModuleNotFoundError as error:
            command = "pip install serialx (on Windows: 'asyncinfer[serial]')"
            raise ConfigError(f"{name}: {error.name} is not installed: {command}") from error
        return await open_serialx(name, port, options, receiver)

    return connect


def _tcp(name: str, url: str) -> Connect:
    try:
        parts = urlsplit(url)
        host, number = parts.hostname, parts.port
    except ValueError:
        host = number = None
    if not url.startswith("tcp://") or host is None or number is None:
        raise ConfigError(f"{name}: a port over the network is tcp://host:port, not {url!r}")

    async def connect(receiver: Receiver) -> ByteTransport:
        loop = asyncio.get_running_loop()
        try:
            _, stream = await loop.create_connection(lambda: Stream(receiver), host, number)
        except OSError as error:
            raise DeviceLost(name, f"cannot connect to {url}: {error}") from error
        return stream.transport

    return connect


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
