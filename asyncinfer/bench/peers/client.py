"""A small HTTP/1.1 client for load: kept-alive connections, requests encoded once.

One client program measures all servers, and it must cost far less than they do: this one does
only what they need.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import cast

__all__ = ("BadReply", "HttpClient", "encode")

_HOST = "127.0.0.1"


class BadReply(Exception):
    """The server answered with something else than a label, or closed the connection."""


def encode(path: str, body: bytes, content_type: str) -> bytes:
    """One POST request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class HttpClient:
    """Sends request *n* and returns the label in its reply. As many connections as are needed."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = requests
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.abort()
        self._all.clear()
        self._idle.clear()

    async def __call__(self, number: int) -> int:
        """Send request ``number``; return the status of its answer."""
        connection = await self._connection()
        try:
            status, body = await connection.send(self._requests[number])
        except BaseException:
            connection.abort()
            self._all.discard(connection)
            raise
        self._idle.append(connection)
        if status != 200:
            raise BadReply(f"HTTP {status}: {body[:200].decode(errors='replace')}")
        return int(json.loads(body)["label"])

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._all.discard(connection)
        loop = asyncio.get_running_loop()
        made = await loop.create_connection(_Connection, _HOST, self._port)
        connection = made[1]
        self._all.add(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the reply. Raises ``BadReply`` if the connection is lost."""
        if self._transport is None or not self.usable:
            raise BadReply("the server closed the connection")
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(BadReply("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._reply is None or self._reply.done():
            return
        try:
            reply = _parse(self._received)
        except ValueError as error:
            self._reply.set_exception(BadReply(f"no HTTP reply of a kind that is known: {error}"))
            self.abort()
            return
        if reply is not None:
            self._received = b""
            self._reply.set_result(reply)


def _parse(received: bytes) -> tuple[int, bytes] | None:
    """Status and body, ``None`` while some is still to come. Raises ``ValueError``."""
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    first, *fields = head.split(b"\r\n")
    status = int(first.split(b" ", 2)[1])
    for field in fields:
        name, _, value = field.lower().partition(b":")
        if name == b"content-length":
            return (status, body) if len(body) >= int(value) else None
        if name == b"transfer-encoding" and value.strip() == b"chunked":
            return (status, _joined(body)) if body.endswith(b"0\r\n\r\n") else None
    raise ValueError(first.decode(errors="replace"))


def _joined(chunks: bytes) -> bytes:
    """The body that was sent in chunks."""
    parts: list[bytes] = []
    while True:
        size, _, rest = chunks.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return b"".join(parts)
        parts.append(rest[:length])
        chunks = rest[length + 2 :]
