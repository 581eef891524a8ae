"""The protocol over HTTP: paths, and what each answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asyncinfer.serve import describe
from asyncinfer.serve.core import Core
from asyncinfer.serve.errors import ANSWERS, Internal, NotFound, ServeError
from asyncinfer.serve.http.inference import HEADERS, Inference
from asyncinfer.serve.http.openapi import openapi
from asyncinfer.serve.metrics import CONTENT_TYPE_LATEST
from asyncinfer.serve.security import Security

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ("application",)

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[Response]]

_INFER = re.compile("/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")


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
            (f"{model}/infer", _elsewhere, "POST"),
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
    return _Front(app, Inference(core, security))


class _Front:
    """The short way for inference requests, of which there are many; all else is Starlette's.

    Its middleware and its search among all paths would take as long as all that is done here.
    """

    def __init__(self, others: ASGIApp, infer: Inference) -> None:
        self._others = others
        self._infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["type"] == "http" and scope["method"] == "POST"
        found = _INFER.fullmatch(scope["path"]) if wanted else None
        if found is None:
            await self._others(scope, receive, send)
            return
        await self._infer(scope, receive, send, *found.groups(""))


async def _elsewhere(request: HttpRequest) -> Response:
    """What ``_Front`` answers: the path is here for its other methods, which are refused."""
    raise NotFound("no such path")


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
    return JSONResponse({"error": str(error)}, status, HEADERS.get(status))


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


def _wanted(request: HttpRequest) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")
