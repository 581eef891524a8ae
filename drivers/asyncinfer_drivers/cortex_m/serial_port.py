"""A serial port or pty by pyserial-asyncio, without the steps that block the event loop.

pyserial waits for bytes by ``select``, which refuses what is open beside 1,024 other files, and
waits in a loop for room to write. The event loop has waited for both already.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import Any

import serial  # type: ignore[import-untyped]
import serial_asyncio  # type: ignore[import-untyped]

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.cortex_m.held import hold, let_go, unlock
from asyncinfer_drivers.cortex_m.transport import (
    ByteTransport,
    Receiver,
    SerialOptions,
    Stream,
)

__all__ = ("open_serial",)

#: how pyserial begins to say that another process has the lock
_LOCKED = "Could not exclusively lock"


async def open_serial(
    name: str, port: str, options: SerialOptions, receiver: Receiver
) -> ByteTransport:
    """Open ``port`` in a thread, for this process alone; ``DeviceLost`` if that fails.

    DTR and RTS are set before it opens, so that they do not move afterwards.
    """
    opened = _Port()
    worker = Worker(f"{name}-port")
    worker.start()
    try:
        await worker.run(_open, opened, port, options)
        return _Transport(name, receiver, opened)
    except BaseException as error:
        await worker.run(_close, opened)
        if not isinstance(error, Exception):
            raise
        # SerialException, ValueError, termios.error
        raise DeviceLost(name, f"cannot open {port}: {_why(error)}") from error
    finally:
        await worker.stop()


def _why(error: Exception) -> str:
    """What pyserial says, without the port's name once more."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and (error.strerror or "").startswith(_LOCKED):
        return "it is in use"
    if number in (errno.EACCES, errno.EPERM):
        return f"{os.strerror(number)}: ask for its group, dialout on many systems"
    return os.strerror(number) if number else str(error)


def _open(opened: serial.Serial, port: str, options: SerialOptions) -> None:
    opened.port = port
    opened.baudrate, opened.dtr, opened.rts = options.baudrate, options.dtr, options.rts
    opened.exclusive = True
    opened.timeout = opened.write_timeout = 0
    opened.open()
    hold(opened.fileno())
    opened.reset_input_buffer()


class _Port(serial.Serial):  # type: ignore[misc]  # it is untyped
    """Reads and writes what the system takes at once. Raises ``SerialException``."""

    def read(self, size: int = 1) -> bytes:
        """Up to ``size`` bytes; none if there are none yet."""
        try:
            data = os.read(self.fileno(), size)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            raise serial.SerialException(error.errno, error.strerror) from error
        if not data:  # a port that was unplugged is always ready, with nothing
            raise serial.SerialException(errno.EIO, "the port is gone")
        return data

    def write(self, data: Any, /) -> int:
        """Return how many bytes were taken."""
        try:
            return os.write(self.fileno(), data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise serial.SerialException(error.errno, error.strerror) from error


class _Transport(serial_asyncio.SerialTransport):  # type: ignore[misc]  # it is untyped
    """Drops unsent bytes and closes the port in a thread: both may block for long."""

    def __init__(self, name: str, receiver: Receiver, opened: serial.Serial) -> None:
        self._running = asyncio.get_running_loop()
        super().__init__(self._running, Stream(receiver), opened)
        self._name = name
        self._receiver = receiver
        self._opened = opened
        self._closer: asyncio.Task[None] | None = None

    def write(self, data: Any) -> None:
        """Send, what the system takes at once; dropped when the port is gone."""
        if self._closing:
            return
        if not self._write_buffer:
            try:
                data = data[self._opened.write(data) :]
            except serial.SerialException as error:
                self._fatal_error(error)
                return
        if data:
            super().write(data)

    def _fatal_error(self, exc: Exception, message: str = "") -> None:
        """Close without a word to the loop's exception handler: ports are unplugged."""
        self._abort(exc)

    def _close(self, exc: Exception | None = None) -> None:
        """Do not wait for what is unsent: a port that is gone never takes it."""
        self._abort(exc)

    def _call_connection_lost(self, exc: Exception | None) -> None:
        if self._closer is None:
            self._write_buffer.clear()
            self._closer = self._running.create_task(self._shut(exc), name=f"close {self._name}")

    async def _shut(self, exc: Exception | None) -> None:
        worker = Worker(f"{self._name}-port")
        worker.start()
        try:
            await worker.run(_close, self._opened)
        finally:
            await worker.stop()
            self._receiver.connection_lost(exc)


def _close(opened: serial.Serial) -> None:
    if opened.is_open:
        let_go(opened.fileno())
        with suppress(Exception):  # it is gone: OSError, or termios.error, which is no OSError
            opened.reset_output_buffer()
        unlock(opened.fileno())
    with suppress(Exception):
        opened.close()
