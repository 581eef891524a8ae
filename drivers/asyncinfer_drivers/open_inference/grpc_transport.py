"""The protocol over gRPC: ``grpc.aio`` with the messages that tritonclient publishes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.faults import Failure, Kind
from asyncinfer_drivers.open_inference.tensors import Given, Head, Message, Received
from asyncinfer_drivers.open_inference.transport import ABOUT_BYTES, ModelConfig

__all__ = ("GrpcTransport",)

pb: Any = service_pb2  # made at run time: no type checker sees its messages

_SERVICE = "/inference.GRPCInferenceService/"
#: field 7 of ModelInferRequest, ``raw_input_contents``: its number, and "bytes of that length"
_RAW = bytes([7 << 3 | 2])
#: field 6 of ModelInferResponse, ``raw_output_contents``
_RAW_OUTPUT = bytes([6 << 3 | 2])
#: bytes of a reply that are kept to compare the next one with
_LONGEST_HEAD = 4096

_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: Kind.INPUT,
    grpc.StatusCode.OUT_OF_RANGE: Kind.INPUT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.BUSY,
    grpc.StatusCode.UNAVAILABLE: Kind.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Kind.LOST,
    grpc.StatusCode.ABORTED: Kind.LOST,
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.TIMEOUT,
    grpc.StatusCode.UNAUTHENTICATED: Kind.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: Kind.DENIED,
    grpc.StatusCode.NOT_FOUND: Kind.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED: Kind.UNKNOWN,
}

#: how gRPC itself says that a connection was lost, or could not be made
_LOST_TEXTS = (
    "Socket closed",
    "Stream removed",
    "onnect to all addresses",
    "GOAWAY",
    "onnection re",
)

#: how it says that something on the way has answered or hung up, whatever the code
_STRANGE_TEXTS = ("Received http2 header with status", "Received RST_STREAM", "Stream removed")

#: requests may have any size; the channel shares no connection with others, since their pauses
#: before they connect again would be its own too; no proxy is asked: devices are in this network
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

#: typed contents, for servers that send no raw ones
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcTransport:
    """One channel to one server; see ``Transport``."""

    def __init__(
        self, address: Address, access: Access, model: str, version: str, *, most: int = ABOUT_BYTES
    ) -> None:
        self._target = address.target
        self._options = (*_OPTIONS, ("grpc.max_receive_message_length", most))
        self._too_large = f" vs. {most})"
        self._name, self._version = model, version
        #: cached: most requests begin like an earlier one
        self._heads = lru_cache(maxsize=64)(self._made_heads)
        #: an earlier reply: what came before the tensor's bytes, its length, its tensor
        self._before: tuple[bytes, int, tuple[str, str, tuple[int, ...]]] = b"", -1, ("", "", ())
        self._metadata = tuple(access.all_headers().items())
        self._credentials: grpc.ChannelCredentials | None = None
        if address.tls:
            access.ssl_context()  # gRPC itself does not say what is wrong with the files
            self._credentials = grpc.ssl_channel_credentials(*access.certificates())
        self._channel: grpc.aio.Channel | None = None
        self._infer: Any = None

    def connect(self) -> None:
        """Make the channel; it connects with the first request."""
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=self._options)
        else:
            self._channel = grpc.aio.secure_channel(
                self._target, self._credentials, options=self._options
            )
        self._infer = self._channel.unary_unary(_SERVICE + "ModelInfer")

    async def close(self) -> None:
        """End the channel and the requests that are under way."""
        channel, self._channel, self._infer = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def metadata(self, timeout: float | None) -> dict[str, Any]:
        """What the server says about the model."""
        request = pb.ModelMetadataRequest(name=self._name, version=self._version)
        reply = await self._ask("ModelMetadata", request, pb.ModelMetadataResponse, timeout)
        return {
            kind: [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
                for one in getattr(reply, kind)
            ]
            for kind in ("inputs", "outputs")
        }

    async def config(self, timeout: float | None) -> ModelConfig:
        """What else the server tells of the model: an extension of Triton."""
        request = pb.ModelConfigRequest(name=self._name, version=self._version)
        try:
            told = (await self._ask("ModelConfig", request, pb.ModelConfigResponse, timeout)).config
        except Failure:
            return ModelConfig()
        optional = frozenset(one.name for one in told.input if one.optional)
        return ModelConfig(told.max_batch_size if told.max_batch_size > 0 else None, optional)

    async def ready(self, timeout: float | None) -> bool:
        """Whether the model can be run now."""
        request = pb.ModelReadyRequest(name=self._name, version=self._version)
        reply = await self._ask("ModelReady", request, pb.ModelReadyResponse, timeout)
        return bool(reply.ready)

    async def about(self, timeout: float | None) -> dict[str, Any]:
        """What the server says about itself, and the models it has if it tells."""
        ready = await self._ask(
            "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, timeout
        )
        request = pb.ServerMetadataRequest()
        server = await self._ask("ServerMetadata", request, pb.ServerMetadataResponse, timeout)
        models: Any = ()
        with suppress(Failure):  # part of an extension that not every server has
            request, reply = pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse
            models = (await self._ask("RepositoryIndex", request, reply, timeout)).models
        return {
            "ready": bool(ready.ready),
            "name": server.name,
            "version": server.version,
            "models": {one.name: one.state for one in models},
        }

    def encode(self, tensors: Sequence[Given], outputs: Sequence[str]) -> Message:
        """A request. The tensors' bytes are copied once: they are the message's last fields."""
        heads = self._heads(tuple([tensor.head for tensor in tensors]), tuple(outputs))
        whole = list[Any]()
        for head, tensor in zip(heads, tensors, strict=True):
            whole.append(head)
            whole += tensor.parts
        return Message(b"".join(whole))

    def _made_heads(self, tensors: Sequence[Head], outputs: Sequence[str]) -> list[bytes]:
        """What stands before the bytes of each tensor: before the first, the message."""
        message = pb.ModelInferRequest(model_name=self._name, model_version=self._version)
        for name, datatype, shape, _ in tensors:
            message.inputs.add(name=name, datatype=datatype, shape=shape)
        for name in outputs:
            message.outputs.add(name=name)
        heads = [_RAW + _varint(size) for *_, size in tensors]
        heads[0] = message.SerializeToString() + heads[0]
        return heads

    async def infer(self, request: Message, timeout: float | None) -> Message:
        """The reply to a request."""
        return Message(await self._call(self._infer, request.body, timeout))

    def decode(self, reply: Message) -> list[Received]:
        """The tensors of a reply; ``ValueError`` if it is none.

        Most replies differ from the one before only in the bytes of their one tensor, which are
        their end: those are neither parsed nor copied.
        """
        body, (head, length, like) = reply.body, self._before
        if len(body) == length and body.startswith(head):
            return [Received(*like, memoryview(body)[len(head) :])]
        tensors = self._parsed(body)
        if len(tensors) == 1 and (raw := tensors[0].raw):
            head = body[: -len(raw)]
            whole = head.endswith(_RAW_OUTPUT + _varint(len(raw))) and body.endswith(raw)
            if whole and len(head) <= _LONGEST_HEAD:
                self._before = head, len(body), tensors[0][:3]
        return tensors

    def _parsed(self, body: bytes) -> list[Received]:
        try:
            message = pb.ModelInferResponse.FromString(body)
        except DecodeError as error:
            raise ValueError(f"no inference response: {error}") from error
        raw = list(message.raw_output_contents)
        if raw and len(raw) != len(message.outputs):
            raise ValueError(f"{len(raw)} raw contents for {len(message.outputs)} outputs")
        tensors = list[Received]()
        for index, one in enumerate(message.outputs):
            values: Sequence[Any] = ()
            if not raw:
                values = list(getattr(one.contents, _CONTENTS.get(one.datatype, ""), ()))
            data = raw[index] if raw else None
            tensors.append(Received(one.name, one.datatype, tuple(one.shape), data, values))
        return tensors

    async def _ask(self, method: str, request: Any, reply: Any, timeout: float | None) -> Any:
        call: Any = self._channel and self._channel.unary_unary(_SERVICE + method)
        data = await self._call(call, request.SerializeToString(), timeout)
        if len(data) > ABOUT_BYTES:
            raise Failure(Kind.TOO_LARGE, f"{len(data)} bytes for {method}")
        try:
            return reply.FromString(data)
        except DecodeError as error:
            raise Failure(Kind.FAILED, f"no answer to {method}: {error}") from error

    async def _call(self, call: Any, request: bytes, timeout: float | None) -> bytes:
        if call is None:
            raise Failure(Kind.LOST, "not open")
        try:
            reply: bytes = await call(request, timeout=timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error
        return reply

    def _failure(self, error: grpc.aio.AioRpcError) -> Failure:
        text = error.details() or error.code().name
        kind = _KINDS.get(error.code(), Kind.FAILED)
        if (
            kind is Kind.BUSY and "larger than max" in text
        ):  # gRPC's limit: of ours, or the server's
            if self._too_large not in text:
                return Failure(Kind.INPUT, text)
            return Failure(Kind.TOO_LARGE, f"{text}; max_reply_bytes is the most that it may")
        if kind is Kind.UNAVAILABLE and not self._came(text):
            kind = Kind.LOST
        if kind is Kind.FAILED and text.startswith(_STRANGE_TEXTS):
            kind = Kind.STRANGE
        return Failure(kind, text, _wait(error.trailing_metadata()))

    def _came(self, text: str) -> bool:
        """Whether the server itself said that it is unavailable; gRPC says so of lost lines too."""
        channel = self._channel
        if channel is None or any(part in text for part in _LOST_TEXTS):
            return False
        return channel.get_state() is grpc.ChannelConnectivity.READY


def _wait(metadata: Any) -> float:
    """Seconds for which the server asks to be left alone."""
    told = dict(metadata or ())
    for key, unit in (("retry-after", 1.0), ("grpc-retry-pushback-ms", 1e-3)):
        text = str(told.get(key, ""))
        if text.isdigit():
            return int(text) * unit
    return 0.0


def _varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
