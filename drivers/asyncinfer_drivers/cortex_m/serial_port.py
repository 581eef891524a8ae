"""A serial port or pty by pyserial-asyncio, without the steps that block the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress

import serial  # type: ignore[import-untyped]
import serial_asyncio  # type: ignore[import-untyped]

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.cortex_m.transport import (
    ByteTransport,
    Receiver,
    SerialOptions,
    Stream,
)

__all__ = ("open_serial",)


async def open_serial(
    name: str, port: str, options: SerialOptions, receiver: Receiver
) -> ByteTransport:
    """Open ``port`` in a thread, for this process alone; ``DeviceLost`` if that fails.

    DTR and RTS are set before it opens, so that they do not move afterwards.
    """
    opened = serial.Serial()
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
    if number in (errno.EAGAIN, errno.EACCES) and "lock" in str(error):
        return "it is in use"
    return os.strerror(number) if number else str(error)


def _open(opened: serial.Serial, port: str, options: SerialOptions) -> None:
    opened.port = port
    opened.baudrate, opened.dtr, opened.rts = options.baudrate, options.dtr, options.rts
    opened.exclusive = True
    opened.timeout = opened.write_timeout = 0
    opened.open()
    opened.reset_input_buffer()


class _Transport(serial_asyncio.SerialTransport):  # type: ignore[misc]  # it is untyped
    """Drops unsent bytes and closes the port in a thread: both may block for long."""

    def __init__(self, name: str, receiver: Receiver, opened: serial.Serial) -> None:
        self._running = asyncio.get_running_loop()
        super().__init__(self._running, Stream(receiver), opened)
        self._name = name
        self._receiver = receiver
        self._opened = opened
        self._closer: asyncio.Task[None] | None = None

    def _fatal_error(self, exc: Exception, message: str = "") -> None:
        """Close without a word to the loop's exception handler: ports are unplugged."""
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
    with suppress(Exception):  # the port is gone: OSError, or termios.error, which is no OSError
        opened.reset_output_buffer()
    with suppress(Exception):
        opened.close()
