"""The port of a board by its name: a serial port, a pty, or an address in a network."""

from __future__ import annotations

import asyncio
import os
import sys
from urllib.parse import urlsplit

from asyncinfer.driver import THIS_HOST
from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._shared.sharing import host_at
from asyncinfer_drivers.cortex_m.held import hang_up, hold, let_go
from asyncinfer_drivers.cortex_m.transport import (
    ByteTransport,
    Connect,
    Receiver,
    SerialOptions,
    Stream,
)

__all__ = ("SERIALX", "connector", "is_serial", "shared_by")

#: before a serial port's name: open it by serialx
SERIALX = "serialx://"


def is_serial(port: str) -> bool:
    """Whether ``port`` is a serial port's (or pty's) name, not an address in a network."""
    return "://" not in port or port.startswith(SERIALX)


def shared_by(port: str) -> frozenset[str]:
    """What the board at a port shares: this host, if it is a program that runs here."""
    if port.startswith("tcp://"):
        here = host_at(urlsplit(port).hostname or "") == THIS_HOST
    else:
        here = os.path.realpath(port.removeprefix(SERIALX)).startswith("/dev/pts/")
    return frozenset((THIS_HOST,) if here else ())


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
            _, stream = await loop.create_connection(lambda: _TcpPort(receiver), host, number)
        except OSError as error:
            raise DeviceLost(name, f"cannot connect to {url}: {error}") from error
        return stream

    return connect


class _TcpPort(Stream):
    """A TCP connection that ends when it is closed, though a forked process has it too."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        super().connection_made(transport)
        self._fd: int = transport.get_extra_info("socket").fileno()
        self.write = self.transport.write
        hold(self._fd)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, before it closes the socket."""
        let_go(self._fd)
        self._fd = -1
        super().connection_lost(exc)

    def abort(self) -> None:
        """Drop what is unsent and close."""
        if self._fd >= 0:
            hang_up(self._fd)
        self.transport.abort()
