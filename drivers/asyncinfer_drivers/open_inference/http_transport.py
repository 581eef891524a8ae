"""The protocol over HTTP, with tensors as bytes behind the JSON, or as JSON."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import aiohttp

from asyncinfer.errors import InputError
from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.faults import Failure, Kind
from asyncinfer_drivers.open_inference.tensors import (
    DATATYPES,
    Given,
    Head,
    Message,
    Received,
    from_received,
)
from asyncinfer_drivers.open_inference.transport import ABOUT_BYTES, ModelConfig

__all__ = ("HttpTransport",)

_LENGTH = "Inference-Header-Content-Length"
_AS_JSON = {"Content-Type": "application/json"}
#: bytes read from the socket at once
_BUFFER = 1 << 20
#: bytes of a body that aiohttp takes in one piece without a warning
_PIECE = 1 << 20
#: most bytes of JSON in an answer: the objects made of it take many times as much memory
_JSON_BYTES = 32 * 1024 * 1024

_KINDS = {
    **dict.fromkeys((400, 411, 413, 415, 422), Kind.INPUT),
    **dict.fromkeys((401, 403, 407), Kind.DENIED),
    **dict.fromkeys((404, 405, 501), Kind.UNKNOWN),
    **dict.fromkeys((408, 504), Kind.TIMEOUT),
    429: Kind.BUSY,
    502: Kind.LOST,
    503: Kind.UNAVAILABLE,
}


class HttpTransport:
    """A pool of connections to one server; see ``Transport``.

    A request that is cancelled or out of time closes its connection, which is how the server
    learns of it.
    """

    def __init__(
        self,
        address: Address,
        access: Access,
        model: str,
        version: str,
        *,
        binary: bool = True,
        most: int = ABOUT_BYTES,
    ) -> None:
        scheme = "https" if address.tls else "http"
        at = f"/versions/{quote(version, safe='')}" if version else ""
        self._root = f"{scheme}://{address.target}{address.path}/v2"
        self._url = f"{self._root}/models/{quote(model, safe='')}{at}"
        # no compression: a small answer could be unpacked to a huge one
        self._headers = {"accept-encoding": "identity"} | access.all_headers()
        self._most = most
        self._ssl = access.ssl_context() if address.tls else False
        self._binary = binary
        #: cached: most requests begin like an earlier one
        self._head = lru_cache(maxsize=64)(self._made_head)
        self._session: aiohttp.ClientSession | None = None
        #: makes a new connection for each request
        self._fresh: aiohttp.ClientSession | None = None

    def connect(self) -> None:
        """Make the pool; it connects with the first request."""
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = self._made(tracing)
        self._fresh = self._made(force_close=True)

    def _made(
        self, *traces: aiohttp.TraceConfig, force_close: bool = False
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl, limit=0, force_close=force_close),
            headers=self._headers,
            read_bufsize=_BUFFER,
            auto_decompress=False,
            trace_configs=list(traces),
            response_class=_Response,
        )

    async def close(self) -> None:
        """Close all connections; requests under way end."""
        sessions = self._session, self._fresh
        self._session = self._fresh = None
        for session in sessions:
            if session is not None:
                await session.close()

    async def metadata(self, timeout: float | None) -> Mapping[str, Any]:
        """What the server says about the model."""
        body, _ = await self._ask("GET", self._url, timeout)
        return _parsed(body)

    async def config(self, timeout: float | None) -> ModelConfig:
        """What else the server tells of the model: an extension of Triton."""
        try:
            told = _parsed((await self._ask("GET", f"{self._url}/config", timeout)).body)
            most, inputs = told.get("max_batch_size"), told.get("input") or ()
            optional = frozenset(str(one["name"]) for one in inputs if one.get("optional"))
        except (Failure, ValueError, KeyError, TypeError, AttributeError):
            return ModelConfig()
        return ModelConfig(most if isinstance(most, int) and most > 0 else None, optional)

    async def ready(self, timeout: float | None) -> bool:
        """Whether the model can be run now."""
        response, answer = await self._exchange("GET", f"{self._url}/ready", timeout)
        if _KINDS.get(response.status) is Kind.DENIED:
            raise _failure(response, answer)
        return response.status == 200

    async def about(self, timeout: float | None) -> Mapping[str, Any]:
        """What the server says about itself, and the models it has if it tells."""
        response, _ = await self._exchange("GET", f"{self._root}/health/ready", timeout)
        server = _parsed((await self._ask("GET", self._root, timeout)).body)
        models: Any = ()
        with suppress(Failure, ValueError):  # part of an extension that not every server has
            index = f"{self._root}/repository/index"
            models = _loaded((await self._ask("POST", index, timeout, b"{}", _AS_JSON)).body)
        return {
            "ready": response.status == 200,
            "name": server.get("name") or "",
            "version": server.get("version") or "",
            "models": {one["name"]: one.get("state") or "READY" for one in models or ()},
        }

    def encode(self, tensors: Sequence[Given], outputs: Sequence[str]) -> Message:
        """A request. The tensors' bytes are copied once, behind the JSON."""
        if not self._binary:
            given = [self._described(one.head) | {"data": _numbers(one)} for one in tensors]
            return Message(self._json(given, outputs))
        text = self._head(tuple(one.head for one in tensors), tuple(outputs))
        body = b"".join([text, *(part for one in tensors for part in one.parts)])
        return Message(body, len(text))

    def _made_head(self, tensors: Sequence[Head], outputs: Sequence[str]) -> bytes:
        given = [
            self._described(one) | {"parameters": {"binary_data_size": one[3]}} for one in tensors
        ]
        return self._json(given, outputs)

    def _json(self, given: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> bytes:
        head: dict[str, Any] = {"inputs": given}
        wanted = {"parameters": {"binary_data": self._binary}}
        if outputs:
            head["outputs"] = [{"name": name, **wanted} for name in outputs]
        if self._binary:  # for each output, and for those who look here only, as KServe's models
            head["parameters"] = {"binary_data_output": True}
        return json.dumps(head, separators=(",", ":")).encode()

    @staticmethod
    def _described(tensor: Head) -> dict[str, Any]:
        name, datatype, shape, _ = tensor
        return {"name": name, "datatype": datatype, "shape": shape}

    async def infer(self, request: Message, timeout: float | None) -> Message:
        """The reply to a request."""
        body, length = request
        binary = {_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        headers = _AS_JSON if length is None else binary
        return await self._ask("POST", f"{self._url}/infer", timeout, body, headers, self._most)

    def decode(self, reply: Message) -> list[Received]:
        """The tensors of a reply; ``ValueError`` if it is none."""
        body, length = reply
        head, rest = (body, b"") if length is None else (body[:length], memoryview(body)[length:])
        if len(head) > _JSON_BYTES:
            raise ValueError(f"{len(head)} bytes of JSON, more than {_JSON_BYTES}")
        tensors, at = list[Received](), 0
        try:
            for one in _parsed(head).get("outputs") or ():
                name, datatype, shape = one["name"], one["datatype"], tuple(one["shape"])
                size = (one.get("parameters") or {}).get("binary_data_size")
                if size is None:
                    tensors.append(Received(name, datatype, shape, None, _flat(one["data"])))
                    continue
                tensors.append(Received(name, datatype, shape, rest[at : at + size]))
                at += size
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no inference response: {error!r}") from error
        return tensors

    async def _ask(
        self,
        method: str,
        url: str,
        timeout: float | None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = ABOUT_BYTES,
    ) -> Message:
        response, answer = await self._exchange(method, url, timeout, body, headers, most)
        if response.status != 200:
            raise _failure(response, answer)
        length = response.headers.get(_LENGTH, "")
        return Message(answer, int(length) if length.isdigit() else None)

    async def _exchange(
        self,
        method: str,
        url: str,
        timeout: float | None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = ABOUT_BYTES,
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """A response of whatever status, and its body."""
        session = self._session
        if session is None:
            raise Failure(Kind.LOST, "not open")
        reused = _Reused()
        try:
            try:
                return await _requested(session, method, url, timeout, body, headers, most, reused)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not reused or self._fresh is None:
                    raise
                # the server closed it just when this was sent, as after an exception in its model
                return await _requested(self._fresh, method, url, timeout, body, headers, most)
        except TimeoutError as error:
            raise Failure(Kind.TIMEOUT, f"nothing within {timeout:g} s") from error
        except aiohttp.ClientPayloadError as error:
            raise Failure(Kind.LOST, f"its answer is not complete: {error}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Failure(Kind.LOST, str(error) or type(error).__name__) from error


class _Response(aiohttp.ClientResponse):
    """Knows its connection even when that is free for others."""

    _line: asyncio.Transport | None = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        self._line = connection.transport
        return await super().start(connection)

    def hang_up(self) -> None:
        """Have nobody use the connection again."""
        if self._line is not None:
            self._line.close()


class _Reused:
    """Whether a request was made over a connection that was there before."""

    def __init__(self) -> None:
        self._noted = False

    def note(self) -> None:
        """It was."""
        self._noted = True

    def __bool__(self) -> bool:
        return self._noted


async def _note_reuse(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
    context.trace_request_ctx.note()


async def _requested(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    timeout: float | None,
    body: bytes | None,
    headers: Mapping[str, str] | None,
    most: int,
    reused: _Reused | None = None,
) -> tuple[aiohttp.ClientResponse, bytes]:
    """A response of whatever status, and its body."""
    async with session.request(
        method,
        url,
        data=io.BytesIO(body) if body and len(body) > _PIECE else body,
        headers=headers,
        allow_redirects=False,
        timeout=_limit(timeout),
        trace_request_ctx=reused,
    ) as response:
        answer = await _read(response, most if response.status == 200 else ABOUT_BYTES)
        if response.status == 500 and isinstance(response, _Response):
            response.hang_up()  # uvicorn does so now, and does not say so
        return response, answer


@lru_cache(maxsize=16)
def _limit(seconds: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body; ``Failure`` as soon as it is more than ``most`` bytes."""
    pieces, size = list[bytes](), response.content_length or 0
    if size <= most:
        size = 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                break
    if size > most:
        response.close()
        raise Failure(Kind.TOO_LARGE, f"{size} bytes or more, the most is {most} (max_reply_bytes)")
    return b"".join(pieces)


def _failure(response: aiohttp.ClientResponse, answer: bytes) -> Failure:
    kind = _KINDS.get(response.status, Kind.FAILED)
    status = f"status {response.status} {response.reason}"
    if _is_strange(response, kind, answer):
        to = response.headers.get("Location")
        return Failure(Kind.STRANGE, f"{status}{f' to {to}' if to else ''}, as of a proxy")
    return Failure(kind, _said(answer) or status, _seconds(response.headers.get("Retry-After", "")))


def _is_strange(response: aiohttp.ClientResponse, kind: Kind, answer: bytes) -> bool:
    """Whether what would blame a task is said by a proxy on the way, which knows no tasks.

    It says so with a page, or with a status that servers of models do not have by themselves; their
    models may choose any, and then say why in JSON. That a body is too large is true of it anyway.
    """
    if kind not in (Kind.INPUT, Kind.FAILED) or response.status == 413:
        return False
    if response.status < 400 or response.content_type == "text/html":
        return True
    return response.status != 500 and response.status not in _KINDS and not _is_object(answer)


def _seconds(told: str) -> float:
    """What ``Retry-After`` says: seconds, or a date; 0 for what is neither."""
    try:
        seconds = float(told) if told.strip().isdigit() else _until(told)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return max(0.0, seconds)


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()


def _parsed(body: bytes) -> Mapping[str, Any]:
    """``ValueError`` if the body is no JSON object."""
    found = _loaded(body)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _loaded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def _is_object(body: bytes) -> bool:
    try:
        return bool(_parsed(body))
    except ValueError:
        return False


def _said(body: bytes) -> str:
    """The text of an error response."""
    try:
        found = _parsed(body)
        return str(found.get("error") or found.get("detail") or found)
    except ValueError:
        return body.decode(errors="replace")


def _numbers(tensor: Given) -> list[Any]:
    """The elements of a tensor, as JSON has them."""
    datatype = DATATYPES[tensor.head[1]]
    if datatype.kind == "O":
        try:
            return [bytes(part[4:]).decode() for part in tensor.parts]
        except UnicodeDecodeError as error:
            text = f"input {tensor.head[0]!r}: bytes that are no UTF-8 cannot go as JSON"
            raise InputError(f"{text}: use binary=True, or gRPC") from error
    raw = b"".join(tensor.parts)
    found: list[Any] = from_received(Received(*tensor.head[:2], (-1,), raw)).tolist()
    return found


def _flat(data: Any) -> list[Any]:
    """Nested lists as one."""
    if data and isinstance(data[0], list):
        return [one for part in data for one in _flat(part)]
    return list(data)
