"""The line between a driver and its process: one message each way in turn."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

from asyncinfer_drivers._torch.wire import Area, dump, load

__all__ = ("Channel",)

#: in front of each message: its length in bytes
_HEAD = struct.Struct("<Q")
#: seconds between two checks whether an answer is still wanted
_POLL_SECONDS = 0.05


class Channel:
    """Sends and receives tuples; what is large in them goes through two areas of memory.

    Blocks. Used by one thread at a time.
    """

    def __init__(self, connection: socket.socket, inbox: Area, outbox: Area) -> None:
        self._connection = connection
        self._inbox = inbox
        self._outbox = outbox

    def send(self, *values: Any) -> None:
        """Send ``values``. Raises what pickling them raises, then nothing was sent.

        Raises ``ConnectionError`` if nobody is there.
        """
        text = pickle.dumps(dump(values, self._outbox))
        self._connection.settimeout(None)
        self._connection.sendall(_HEAD.pack(len(text)) + text)

    def receive(self, wanted: Callable[[], bool] | None = None) -> tuple[Any, ...] | None:
        """The next values; ``None`` if the other side has closed, or they are not ``wanted`` now.

        Without ``wanted`` it waits without looking up.
        """
        self._connection.settimeout(None if wanted is None else _POLL_SECONDS)
        try:
            head = self._exactly(_HEAD.size, wanted)
            text = self._exactly(_HEAD.unpack(head)[0], wanted)
        except (EOFError, ConnectionError):
            return None
        pickled, sizes = pickle.loads(text)  # noqa: S301  # from our own process
        values: tuple[Any, ...] = load(pickled, sizes, self._inbox)
        return values

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
