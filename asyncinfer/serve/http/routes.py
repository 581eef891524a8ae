"""The protocol over HTTP: paths, and what each answers."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asyncinfer.serve import describe
from asyncinfer.serve.core import Core, Job, Request
from asyncinfer.serve.errors import (
    ANSWERS,
    BadRequest,
    Cancelled,
    Internal,
    ServeError,
    TooLarge,
)
from asyncinfer.serve.gate import Held
from asyncinfer.serve.http.body import JSON_LENGTH, decode, encode
from asyncinfer.serve.http.openapi import openapi
from asyncinfer.serve.metrics import CONTENT_TYPE_LATEST
from asyncinfer.serve.security import Security
from asyncinfer.serve.tensors import Array

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ("application",)

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[Response]]

_INFER = re.compile("/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
#: seconds after which it is looked whether the client is still there: most are answered before
_LONG = 0.02
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def application(core: Core, security: Security) -> ASGIApp:
    """The ASGI application."""
    api = _Api(core)
    guarded: list[tuple[str, Handler, str]] = [
        ("/v2", api.server, "GET"),
        ("/v2/models/stats", api.all_stats, "GET"),
        ("/v2/repository/index", api.index, "POST"),
        ("/metrics", api.metrics, "GET"),
        ("/openapi.json", api.openapi, "GET"),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        guarded += [
            (model, api.model, "GET"),
            (f"{model}/ready", api.model_ready, "GET"),
            (f"{model}/config", api.model_config, "GET"),
            (f"{model}/stats", api.model_stats, "GET"),
            (f"{model}/infer", api.infer, "POST"),
        ]
    routes = [
        Route("/v2/health/live", api.live, methods=["GET"]),
        Route("/v2/health/ready", api.ready, methods=["GET"]),
    ]
    routes += [
        Route(path, _answering(handler, security), methods=[method])
        for path, handler, method in guarded
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    app.router.redirect_slashes = False
    return _Front(app, _answering(api.infer, security))


class _Front:
    """The short way for inference requests, of which there are many; all else is Starlette's.

    Its middleware and its search among all paths would take as long as all that is done here.
    """

    def __init__(self, others: ASGIApp, infer: Handler) -> None:
        self._others = others
        self._infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["type"] == "http" and scope["method"] == "POST"
        found = _INFER.fullmatch(scope["path"]) if wanted else None
        if found is None:
            await self._others(scope, receive, send)
            return
        scope["path_params"] = found.groupdict("")
        response = await self._infer(HttpRequest(scope, receive))
        await response(scope, receive, send)


def _answering(handler: Handler, security: Security) -> Handler:
    """``handler`` for those with the token, its errors as answers."""

    async def answer(request: HttpRequest) -> Response:
        try:
            security.check(request.headers.get("authorization"))
            return await handler(request)
        except ServeError as error:
            return _error(error)

    return answer


def _error(error: ServeError) -> Response:
    status, _ = ANSWERS[type(error)]
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
    return JSONResponse({"error": str(error)}, status, headers)


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return _error(Internal(str(error)))
    detail = {404: "no such path", 405: "the path does not take this method"}
    text = detail.get(error.status_code, error.detail)
    return JSONResponse({"error": text}, error.status_code, error.headers)


class _Api:
    """What the paths answer."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def live(self, request: HttpRequest) -> Response:
        """The process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: HttpRequest) -> Response:
        """Requests are admitted, and every model has a device that is up."""
        ready = self._core.ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def server(self, request: HttpRequest) -> Response:
        """The server's metadata."""
        return JSONResponse(describe.server(self._core))

    async def index(self, request: HttpRequest) -> Response:
        """All models."""
        return JSONResponse(describe.index(self._core))

    async def metrics(self, request: HttpRequest) -> Response:
        """For Prometheus."""
        return Response(self._core.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: HttpRequest) -> Response:
        """These paths, described."""
        return JSONResponse(openapi(self._core))

    async def model(self, request: HttpRequest) -> Response:
        """A model's metadata."""
        return JSONResponse(self._core.model(*_wanted(request)).metadata())

    async def model_ready(self, request: HttpRequest) -> Response:
        """A device of the model is up."""
        name, version = _wanted(request)
        ready = self._core.model(name, version).ready and not self._core.gate.closed
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)

    async def model_config(self, request: HttpRequest) -> Response:
        """The model as Triton configures one."""
        served = self._core.model(*_wanted(request))
        return JSONResponse(describe.config(served, self._core.limits))

    async def model_stats(self, request: HttpRequest) -> Response:
        """A model's statistics."""
        served = self._core.model(*_wanted(request))
        return JSONResponse({"model_stats": [describe.statistics(served)]})

    async def all_stats(self, request: HttpRequest) -> Response:
        """All models' statistics."""
        stats = [describe.statistics(served) for served in self._core.models_open()]
        return JSONResponse({"model_stats": stats})

    async def infer(self, request: HttpRequest) -> Response:
        """One inference request."""
        with self._core.job("http") as job, self._core.gate.hold() as held:
            served = job.model(*_wanted(request))
            body = await self._body(request, held)
            job.received()
            apart, limits = self._core.apart, self._core.limits
            header = request.headers.get(JSON_LENGTH)
            decoded = await apart(len(body), decode, body, header, served, limits)
            outputs = await _while_connected(request, job, decoded.request)
            size = sum(array.nbytes for array in outputs.values())
            content, length = await apart(size, encode, decoded, served, outputs)
        binary = length < len(content)
        return Response(
            content,
            media_type="application/octet-stream" if binary else "application/json",
            headers={JSON_LENGTH: str(length)} if binary else None,
        )

    async def _body(self, request: HttpRequest, held: Held) -> bytearray:
        """The body, no more of it than the limits allow, unpacked if it is packed."""
        declared = request.headers.get("content-length", "")
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if declared.isascii() and declared.isdigit() and len(declared) < 19:
            held.add(int(declared))  # refuses what is too large before it comes
        body = bytearray()
        try:
            async with self._core.gate.receiving():
                async for chunk in request.stream():
                    held.add(max(0, len(body) + len(chunk) - held.count))
                    body += chunk
        except ClientDisconnect:
            raise Cancelled("the client went away") from None
        if encoding in ("", "identity"):
            return body
        if encoding not in ("gzip", "deflate"):
            raise BadRequest("the content encoding must be gzip, deflate or none")
        body = await self._core.apart(len(body), _unpacked, body, held.limit)
        held.add(max(0, len(body) - held.count))
        return body


def _wanted(request: HttpRequest) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


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


async def _while_connected(request: HttpRequest, job: Job, wanted: Request) -> dict[str, Array]:
    """The outputs, unless the client goes away: then its tasks are withdrawn."""
    watch = _Watch(request)
    try:
        return await job.infer(wanted)
    except asyncio.CancelledError:
        if watch.gone and watch.working.uncancel() == 0:
            raise Cancelled("the client went away") from None
        raise
    finally:
        await watch.end()


class _Watch:
    """Cancels the task that works on a request once its client has gone."""

    def __init__(self, request: HttpRequest) -> None:
        working = asyncio.current_task()
        assert working is not None  # noqa: S101  # it is made in one
        self.working = working
        self.gone = False
        self._request = request
        self._watching: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_LONG, self._begin)

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.working.cancel()

    async def end(self) -> None:
        """Look no further."""
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
