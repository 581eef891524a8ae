"""The line between a driver and its process: one message each way in turn."""

from __future__ import annotations

import pickle
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from asyncinfer.errors import AsyncInferError
from asyncinfer_drivers._torch.wire import Area, Pickled, load

__all__ = ("Channel", "Unloadable")

#: in front of each message: its length in bytes
_HEAD = struct.Struct("<Q")
#: seconds between two checks whether an answer is still wanted
_POLL_SECONDS = 0.05


class Unloadable(Exception):
    """A message has come, and what is in it cannot be made here; says why."""


def _told(error: Exception) -> str:
    """What kept a value from being made, and of which type it most likely is."""
    if isinstance(error, AsyncInferError):
        return str(error)
    of = "".join(f" of type {name}" for name in getattr(error, "__notes__", ())[-1:] if name)
    return f"a value{of} cannot be made there: {type(error).__name__}: {error}"


class Channel:
    """Sends and receives tuples; what is large in them goes through two areas of memory.

    Blocks. Used by one thread at a time.
    """

    #: finds what the main program of the other side has defined
    main: Callable[[str], Any] | None = None

    def __init__(self, connection: socket.socket, inbox: Area, outbox: Area) -> None:
        self._connection = connection
        self._inbox = inbox
        self._outbox = outbox

    def send(self, *values: Any) -> None:
        """Send ``values``. Raises what pickling them raises, then nothing was sent.

        Raises ``ConnectionError`` if nobody is there, ``MemoryError`` if the system grants too
        little memory to share.
        """
        self.post(Pickled.of(values))

    def post(self, values: Pickled) -> None:
        """Send what is pickled already. Raises as ``send`` does."""
        try:
            text = pickle.dumps(values.into(self._outbox))
        except OSError as error:
            size = sum(buffer.raw().nbytes for buffer in values.buffers)
            raise MemoryError(
                f"the system grants no {size / 2**20:.0f} MiB of memory to share with the "
                f"driver's process ({error.strerror}): see ulimit -a, or use isolation='thread'"
            ) from error
        self._connection.settimeout(None)
        self._connection.sendall(_HEAD.pack(len(text)) + text)

    def receive(self, wanted: Callable[[], bool] | None = None) -> tuple[Any, ...] | None:
        """The next values; ``None`` if the other side has closed, or they are not ``wanted`` now.

        Without ``wanted`` it waits without looking up. Raises ``Unloadable`` for values that this
        process cannot make; the next message can be received.
        """
        self._connection.settimeout(None if wanted is None else _POLL_SECONDS)
        try:
            head = self._exactly(_HEAD.size, wanted)
            text = self._exactly(_HEAD.unpack(head)[0], wanted)
        except (EOFError, ConnectionError):
            return None
        pickled, sizes = pickle.loads(text)  # noqa: S301  # from our own process
        try:
            values: tuple[Any, ...] = load(pickled, sizes, self._inbox, self.main)
        except Exception as error:
            raise Unloadable(_told(error)) from error
        return values

    def ready(self, seconds: float) -> bool:
        """Whether something comes within that time: a message, or the end."""
        return bool(select.select([self._connection], [], [], seconds)[0])

    def open(self) -> bool:
        """Whether the other side has not closed, as far as is known without waiting."""
        try:
            here = self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return here != b""

    def forget_received(self) -> None:
        """Hold nothing of what has come, which lets the other side forget it."""
        self._inbox.unmap()

    def forget_sent(self) -> None:
        """Give back the memory of what was sent, when the other side has said that it forgot it."""
        self._outbox.empty()

    def close(self) -> None:
        """Close the line and let go of the memory."""
        self._connection.close()
        self._inbox.close()
        self._outbox.close()

    def _exactly(self, count: int, wanted: Callable[[], bool] | None) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._connection.recv(count - len(parts))
            except TimeoutError:
                if wanted is not None and wanted():
                    continue
                raise EOFError from None
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)
