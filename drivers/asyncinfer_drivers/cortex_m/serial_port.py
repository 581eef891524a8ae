"""A serial port or pty, opened by pyserial; its bytes go through the event loop without it.

pyserial waits for bytes by ``select``, which refuses what is open beside 1,024 other files, and
waits in a loop for room to write.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress

import serial  # type: ignore[import-untyped]

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.cortex_m.held import hold, let_go, unlock
from asyncinfer_drivers.cortex_m.transport import ByteTransport, Receiver, SerialOptions

__all__ = ("open_serial",)

#: most bytes read at once
_CHUNK_BYTES = 65_536
#: how pyserial begins to say that another process has the lock
_LOCKED = "Could not exclusively lock"


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


class _Transport:
    """Reads and writes as the event loop says; closes in a thread, as that may block for long."""

    def __init__(self, name: str, receiver: Receiver, opened: serial.Serial) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._receiver = receiver
        self._opened = opened
        self._fd: int = opened.fileno()
        self._unsent = bytearray()
        self._has_writer = False
        self._closer: asyncio.Task[None] | None = None
        self._loop.add_reader(self._fd, self._read)

    def write(self, data: bytes) -> None:
        """Send; dropped when the port is gone."""
        if self._closer is not None:
            return
        waiting = bool(self._unsent)
        self._unsent += data
        if not waiting:
            self._write()

    def abort(self) -> None:
        """Drop what is unsent, in the system too, where it would delay the closing."""
        self._end(None)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._receiver.data_received(data)
        else:  # a port that was unplugged is always ready, with nothing
            self._end(OSError(errno.EIO, "the port is gone"))

    def _write(self) -> None:
        try:
            sent = os.write(self._fd, self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._end(error)
            return
        del self._unsent[:sent]
        if bool(self._unsent) != self._has_writer:
            self._has_writer = not self._has_writer
            if self._has_writer:
                self._loop.add_writer(self._fd, self._write)
            else:
                self._loop.remove_writer(self._fd)

    def _end(self, error: Exception | None) -> None:
        if self._closer is not None:
            return
        self._loop.remove_reader(self._fd)
        if self._has_writer:
            self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self._closer = self._loop.create_task(self._shut(error), name=f"close {self._name}")

    async def _shut(self, error: Exception | None) -> None:
        worker = Worker(f"{self._name}-port")
        worker.start()
        try:
            await worker.run(_close, self._opened)
        finally:
            await worker.stop()
            self._receiver.connection_lost(error)


def _close(opened: serial.Serial) -> None:
    if opened.is_open:
        let_go(opened.fileno())
        with suppress(Exception):  # it is gone: OSError, or termios.error, which is no OSError
            opened.reset_output_buffer()
        unlock(opened.fileno())
    with suppress(Exception):
        opened.close()
