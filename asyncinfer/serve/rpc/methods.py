"""The protocol over gRPC: its methods, and what each answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict

from asyncinfer.serve import describe
from asyncinfer.serve.claims import Client, client_of_peer
from asyncinfer.serve.core import Core, Job, logger
from asyncinfer.serve.errors import (
    ANSWERS,
    BadRequest,
    NotFound,
    ServeError,
    Unavailable,
    as_answer,
)
from asyncinfer.serve.gate import Held
from asyncinfer.serve.rpc.message import Decoder, encode, in_stream, parse, pb
from asyncinfer.serve.security import Security

__all__ = ("handlers",)

Context: TypeAlias = Any  # grpc.aio.ServicerContext[bytes, bytes]: it is generic in stubs only
_Answer: TypeAlias = Callable[[Any], Awaitable[Any]]

#: those under way in a stream, in order; ``None`` after the last
_Answers: TypeAlias = "asyncio.Queue[asyncio.Task[bytes] | None]"

_SERVICE = "inference.GRPCInferenceService"


def handlers(core: Core, security: Security) -> tuple[grpc.GenericRpcHandler, Callable[[], None]]:
    """The methods for a server to have, and a function that ends the open streams.

    Messages are parsed here, so that what is no message is the client's error.
    """
    api, inference = _Api(core), _Inference(core)
    open_to_all = {"ServerLive": api.live, "ServerReady": api.ready}
    guarded = {
        "ModelReady": api.model_ready,
        "ServerMetadata": api.server,
        "ModelMetadata": api.model,
        "ModelConfig": api.config,
        "ModelStatistics": api.statistics,
        "RepositoryIndex": api.index,
    }
    # streams of requests on the wire, of which a client sends one: so nothing is read, and takes
    # memory, before there is room for it
    ones = {name: functools.partial(_unread, answer) for name, answer in open_to_all.items()}
    for name, answer in guarded.items():
        ones[name] = functools.partial(_unary, answer, getattr(pb, f"{name}Request"), core)
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, call in (ones | {"ModelInfer": inference.one}).items():
        one = functools.partial(_guarded, call, Security() if name in open_to_all else security)
        methods[name] = grpc.stream_unary_rpc_method_handler(one)
    stream = functools.partial(_guarded, inference.stream, security)
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
    return grpc.method_handlers_generic_handler(_SERVICE, methods), inference.end_streams


async def _unread(answer: _Answer, context: Context) -> bytes:
    """What takes no room has an answer however full the server is."""
    return bytes((await answer(None)).SerializeToString())


async def _unary(answer: _Answer, kind: Any, core: Core, context: Context) -> bytes:
    with core.gate.hold() as held:
        message = await answer(parse(kind, await _only(core, held, context)))
        return bytes(message.SerializeToString())


async def _only(core: Core, held: Held, context: Context) -> bytes:
    """The one message of a call, once there is room for the largest."""
    async with core.gate.receiving():
        await held.wait(held.limit)
        data = await _read(context)
    if data is None:
        raise BadRequest("the call has no message")
    held.only(len(data))
    return data


async def _guarded(
    call: _Answer, security: Security, _: AsyncIterator[bytes] | None, context: Context
) -> Any:
    """Check the token, run ``call``, and turn errors into the call's status."""
    try:
        if security.token:
            metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
            authorization = metadata.get("authorization")
            security.check(authorization if isinstance(authorization, str) else None)
        return await call(context)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        answer = as_answer(error)
        if answer is not error:
            logger.exception("a gRPC call failed")
        await context.abort(grpc.StatusCode[ANSWERS[type(answer)][1]], str(answer))


class _Api:
    """What the methods besides inference answer."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def live(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, request: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._core.ready)

    async def model_ready(self, request: Any) -> Any:
        try:
            served = self._core.model(request.name, request.version)
        except NotFound:  # as Triton has it
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=served.ready and not self._core.gate.closed)

    async def server(self, request: Any) -> Any:
        return ParseDict(describe.server(self._core), pb.ServerMetadataResponse())

    async def model(self, request: Any) -> Any:
        served = self._core.model(request.name, request.version)
        return ParseDict(served.metadata(), pb.ModelMetadataResponse())

    async def config(self, request: Any) -> Any:
        served = self._core.model(request.name, request.version)
        config = describe.config(served, self._core.limits)
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def statistics(self, request: Any) -> Any:
        if request.name:
            models = [self._core.model(request.name, request.version)]
        else:
            models = list(self._core.models_open())
        stats = [describe.statistics(served) for served in models]
        return ParseDict({"model_stats": stats}, pb.ModelStatisticsResponse())

    async def index(self, request: Any) -> Any:
        return ParseDict({"models": describe.index(self._core)}, pb.RepositoryIndexResponse())


class _Inference:
    """ModelInfer and ModelStreamInfer."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._decode = Decoder()
        self._readings: set[asyncio.Task[bytes | None]] = set()

    def end_streams(self) -> None:
        """Read no further from the open streams; they end when all they have sent is answered."""
        for reading in self._readings:
            reading.cancel()

    async def one(self, context: Context) -> bytes:
        """One request, one answer."""
        with self._core.job("grpc") as job, self._core.gate.hold() as held:
            job.client = client_of_peer(context.peer())
            return await self._infer(job, await _only(self._core, held, context))

    async def stream(self, context: Context) -> None:
        """Many requests; answers, and errors that are one request's own, in their order."""
        answers: _Answers = asyncio.Queue(self._core.limits.max_stream_requests)
        with self._core.gate.stream():
            reader = asyncio.create_task(self._read_all(context, answers))
            try:
                while (answer := await answers.get()) is not None:
                    await context.write(await answer)
                error = await reader
            finally:
                await _cancelled(reader)
                while not answers.empty():
                    await _cancelled(answers.get_nowait())
        if error is not None:
            raise error

    async def _read_all(self, context: Context, answers: _Answers) -> Exception | None:
        """Begin to answer each message, as far as ``answers`` has room; what ended the reading."""
        error = None
        try:
            while (data := await self._next(context)) is not None:
                held = self._core.gate.hold()
                await held.wait(min(len(data), held.limit))
                answer = asyncio.create_task(self._answer(data, client_of_peer(context.peer())))
                answer.add_done_callback(functools.partial(_give_back, held))
                try:
                    await answers.put(answer)
                except asyncio.CancelledError:
                    answer.cancel()
                    raise
        except Exception as raised:
            error = raised
        await answers.put(None)
        return error

    async def _next(self, context: Context) -> bytes | None:
        reading = asyncio.ensure_future(_read(context))
        self._readings.add(reading)
        try:
            return await reading
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            raise Unavailable("the server is shutting down") from None
        finally:
            self._readings.discard(reading)

    async def _answer(self, data: bytes, client: Client) -> bytes:
        """One message of a stream: the answer to it, or why there is none."""
        try:
            with self._core.job("grpc_stream") as job:
                job.client = client
                return in_stream(await self._infer(job, data))
        except ServeError as error:
            response = pb.ModelStreamInferResponse(error_message=str(error))
            response.infer_response.id = _identifier(data)
            return bytes(response.SerializeToString())

    async def _infer(self, job: Job, data: bytes) -> bytes:
        job.received()
        apart = self._core.apart
        decoded = await apart(len(data), self._decode, data, job.model)
        outputs = await job.infer(decoded.request)
        size = sum(array.nbytes for array in outputs.values())
        return await apart(size, encode, decoded.served, decoded.id, outputs)


async def _read(context: Context) -> bytes | None:
    """The next message; ``None`` at the end."""
    data = await context.read()
    return None if data is grpc.aio.EOF else data


def _give_back(held: Held, _: object) -> None:
    held.only(0)


async def _cancelled(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _identifier(data: bytes) -> str:
    try:
        return str(parse(pb.ModelInferRequest, data).id)
    except BadRequest:
        return ""
