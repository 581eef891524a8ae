"""uvicorn, inside a running event loop and with limits on what a connection may send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from asyncinfer.serve.http.exchange import Exchange
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.security import Security

__all__ = ("HttpServer",)

#: seconds that what is still being sent may take when the server ends
_GRACE = 1
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


class HttpServer:
    """The HTTP side: listens when started, ends when stopped."""

    def __init__(self, app: Any, listening: socket.socket, limits: Limits, tls: Security) -> None:
        self._listening = listening
        config = uvicorn.Config(
            app,
            http=type("Limited", (_Limited,), {"limits": limits}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.max_connections,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE,
            ssl_certfile=tls.certificate,
            ssl_keyfile=tls.key,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once connections are accepted."""
        self._serving = asyncio.create_task(
            self._server.serve([self._listening]), name="asyncinfer http"
        )
        started = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait((self._serving, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._serving.done():
            self._serving.result()
            raise OSError("the HTTP server ended while it was starting")

    async def stop(self) -> None:
        """Accept no connections, end those that are idle, and a moment later the others."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving


class _Server(uvicorn.Server):
    """Leaves signals alone, and tells when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class _Gathered:
    """A transport that writes what comes in one turn of the event loop at once.

    uvicorn writes an answer's head and body apart: that is two calls of the system, and two
    awakenings of the client.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Have it written with whatever follows in this turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Write what there is, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():  # the client may have gone
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Limited(HttpToolsProtocol):
    """uvicorn's protocol, which by itself sets no limit to headers and waits for them for ever."""

    limits: Limits
    _head = 0
    _in_head = True
    _timer: asyncio.TimerHandle | None = None
    _exchanges: deque[Exchange]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._exchanges = deque()  # those not answered yet
        super().connection_made(cast("asyncio.Transport", _Gathered(transport, self.loop)))
        self._await_request()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._in_head and self._head > self.limits.max_header_bytes:
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._await_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self._exchanges.append(Exchange(self.scope, self.cycle))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if self._exchanges and len(cycle.body) + len(body) <= self._exchanges[-1].room:
            cycle.body += body
        else:
            super().on_body(body)

    def on_response_complete(self) -> None:
        self._exchanges.popleft()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._in_head, self._head = True, 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        for exchange in self._exchanges:
            exchange.lost()

    def _await_request(self) -> None:
        self._stop_timer()
        seconds = self.limits.receive_timeout + 1  # the application's own limit comes first
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
