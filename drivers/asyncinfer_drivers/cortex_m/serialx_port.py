"""A serial port or pty by serialx, for where there are no file descriptors: Windows.

serialx opens and closes the port in threads of the event loop's default executor.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress

import serialx

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers.cortex_m.held import hold, let_go, unlock
from asyncinfer_drivers.cortex_m.transport import (
    ByteTransport,
    Receiver,
    SerialOptions,
    Stream,
)

__all__ = ("open_serialx",)


async def open_serialx(
    name: str, port: str, options: SerialOptions, receiver: Receiver
) -> ByteTransport:
    """Open ``port`` for this process alone; ``DeviceLost`` if that fails."""
    try:
        opened, _ = await serialx.create_serial_connection(
            asyncio.get_running_loop(),
            lambda: Stream(receiver),
            port,
            options.baudrate,
            exclusive=True,
            dtr_on_open=serialx.PinState.convert(options.dtr),
            rts_on_open=serialx.PinState.convert(options.rts),
        )
    except Exception as error:  # OSError, SerialException, ValueError, termios.error
        raise DeviceLost(name, f"cannot open {port}: {_why(error)}") from error
    return _Transport(opened)


def _why(error: Exception) -> str:
    """What serialx says, without the port's name once more."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EBUSY:
        return "it is in use"
    return os.strerror(number) if number else str(error)


class _Transport:
    """serialx's transport raises in ``write`` once the port is gone, and keeps unsent bytes."""

    def __init__(self, opened: serialx.BaseSerialTransport) -> None:
        self._opened = opened
        self._fd = _descriptor(opened)
        if self._fd is not None:
            hold(self._fd)

    def write(self, data: bytes) -> None:
        """Send; dropped when the port is gone."""
        if not self._opened.is_closing():
            with suppress(Exception):  # connection_lost tells
                self._opened.write(data)

    def abort(self) -> None:
        """Drop what is unsent, in the system too, where it would delay the closing."""
        if self._opened.is_closing():
            return
        with suppress(Exception):  # it is gone, and closing by itself
            port = self._opened.serial
            if self._fd is not None:
                let_go(self._fd)
                unlock(self._fd)
            self._opened.abort()
            port.reset_write_buffer()  # it is closed in a later step, so still ours here


def _descriptor(opened: serialx.BaseSerialTransport) -> int | None:
    """Its file descriptor; Windows has none."""
    return int(opened.serial.fileno()) if os.name == "posix" else None
