"""Inference requests over HTTP: by far the most, so nothing but what they need is between."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from asyncinfer.serve.claims import client_at
from asyncinfer.serve.core import Core, Job, Request
from asyncinfer.serve.errors import ANSWERS, BadRequest, Cancelled, ServeError, TooLarge
from asyncinfer.serve.gate import Held
from asyncinfer.serve.http.body import JSON_LENGTH, Decoder, encode
from asyncinfer.serve.http.exchange import Exchange
from asyncinfer.serve.security import Security
from asyncinfer.serve.tensors import Array

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ("HEADERS", "Inference")

#: what an error's status says besides
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}

_LENGTH = JSON_LENGTH.lower().encode()
_JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
_BINARY: tuple[bytes, bytes] = (b"content-type", b"application/octet-stream")
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class Inference:
    """Answers inference requests, as a part of an ASGI application."""

    def __init__(self, core: Core, security: Security) -> None:
        self._core = core
        self._security = security
        #: by the names of the models
        self._decoders: dict[str, Decoder] = {}

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, model: str, version: str
    ) -> None:
        """Answer the request for a model."""
        headers = dict(reversed(scope["headers"]))  # the first of a name counts
        try:
            if self._security.token:
                self._security.check(_text(headers, b"authorization"))
            content, length = await self._answer(scope, headers, model, version)
        except ServeError as error:
            status, _ = ANSWERS[type(error)]
            content = json.dumps({"error": str(error)}).encode()
            more = HEADERS.get(status, {}).items()
            told: list[tuple[bytes, bytes]] = [
                _JSON,
                *((name.lower().encode(), value.encode()) for name, value in more),
            ]
        else:
            status, told = 200, [_JSON]
            if length < len(content):
                told = [_BINARY, (_LENGTH, b"%d" % length)]
        told.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], model: str, version: str
    ) -> tuple[bytes, int]:
        """The answer's body, and how much of it is JSON."""
        core, exchange = self._core, Exchange.of(scope)
        with core.job("http") as job, core.gate.hold() as held:
            served = job.model(model, version)
            job.client = client_at(scope.get("client"))
            body = await self._body(exchange, headers, held)
            job.received()
            decoder = self._decoders.get(model)
            if decoder is None:
                decoder = self._decoders[model] = Decoder(served, core.limits)
            decoded = await core.apart(len(body), decoder, body, _text(headers, _LENGTH))
            outputs = await _while_connected(exchange, job, decoded.request)
            size = sum(array.nbytes for array in outputs.values())
            return await core.apart(size, encode, decoded, served, outputs)

    async def _body(
        self, exchange: Exchange, headers: Mapping[bytes, bytes], held: Held
    ) -> bytearray:
        """The body, no more of it than the limits allow, unpacked if it is packed."""
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and len(declared) < 19:
            held.add(int(declared))  # refuses what is too large before it comes
        if (body := exchange.whole()) is None:
            async with self._core.gate.receiving():
                body = await exchange.body(held)
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        if encoding in (b"", b"identity"):
            return body
        if encoding not in (b"gzip", b"deflate"):
            raise BadRequest("the content encoding must be gzip, deflate or none")
        body = await self._core.apart(len(body), _unpacked, body, held.limit)
        held.add(max(0, len(body) - held.count))
        return body


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _unpacked(body: bytearray, most: int) -> bytearray:
    """What a gzip or zlib stream holds; ``TooLarge`` if that is more than ``most`` bytes."""
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        unpacked = bytearray(stream.decompress(body, most + 1))
    except zlib.error as error:
        raise BadRequest(f"the body cannot be unpacked: {error}") from None
    if len(unpacked) > most:
        raise TooLarge(f"the request, unpacked, is larger than {most} bytes")
    if not stream.eof:
        raise BadRequest("the packed body is cut off")
    if stream.unused_data:
        raise BadRequest("the packed body is more than one stream")
    return unpacked


async def _while_connected(exchange: Exchange, job: Job, wanted: Request) -> dict[str, Array]:
    """The outputs, unless the client goes away: then its tasks are withdrawn."""
    working = asyncio.current_task()
    assert working is not None  # noqa: S101  # this is a coroutine
    exchange.watch(working.cancel)
    try:
        return await job.infer(wanted)
    except asyncio.CancelledError:
        if exchange.gone and working.uncancel() == 0:
            raise Cancelled("the client went away") from None
        raise
    finally:
        exchange.watch(None)
