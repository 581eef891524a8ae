"""Messages of the protocol over gRPC: from bytes to requests, from tensors to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from asyncinfer.serve.claims import request_priority
from asyncinfer.serve.core import Request
from asyncinfer.serve.errors import BadRequest, quoted
from asyncinfer.serve.http.body import request_timeout
from asyncinfer.serve.inputs import alike, checked
from asyncinfer.serve.served import VERSION, Served
from asyncinfer.serve.tensors import Array, TensorSpec, from_bytes, from_values, to_bytes

__all__ = ("Decoded", "Decoder", "encode", "in_stream", "parse", "pb")

#: the messages; generated, without stubs
pb: Any = service_pb2

#: fields of messages, each with "bytes of the length that follows": ``raw_input_contents``,
#: ``raw_output_contents``, and ``infer_response`` of a stream's
_RAW, _RAW_OUTPUT, _INFER_RESPONSE = (bytes([number << 3 | 2]) for number in (7, 6, 2))
#: bytes before a tensor that are remembered at most, and how many such
_SHORT, _REMEMBERED = 2048, 256
#: parameters of a request that are heeded
_USED = ("timeout", "priority")

#: the field of ``InferTensorContents`` that has the numbers of a datatype
_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def parse(kind: Any, data: bytes) -> Any:
    """The message in ``data``. Raises ``BadRequest``."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise BadRequest(f"this is no {kind.__name__}") from None
    return message


class Decoded(NamedTuple):
    """One ``ModelInferRequest``."""

    served: Served
    id: str
    request: Request


class Decoder:
    """Checks and converts messages.

    Most requests differ from one before only in the bytes of their one tensor, which are their end:
    of those that, and how long they are, is compared, and nothing else parsed.
    """

    def __init__(self) -> None:
        #: by the length of a message: what came before its tensor's bytes, and what that says
        self._known: dict[int, tuple[bytes, _Known]] = {}

    def __call__(self, data: bytes, find: Callable[[str, str], Served]) -> Decoded:
        """What is in a message, whose model ``find`` finds.

        Raises ``BadRequest``, or ``NotFound``.
        """
        head, known = self._known.get(len(data), (b"", None))
        if known is not None and data.startswith(head):
            served = find(*known.model)
            array = from_bytes(memoryview(data)[len(head) :], known.spec, known.shape)
            inputs = {known.spec.name: array}
            request = Request(inputs, known.outputs, known.timeout, known.priority)
            return Decoded(served, known.id, request)
        message = parse(pb.ModelInferRequest, data)
        served = find(message.model_name, message.model_version)
        request = decode(message, served)
        if len(message.raw_input_contents) == 1:
            self._remember(data, message, served, request)
        return Decoded(served, message.id, request)

    def _remember(self, data: bytes, message: Any, served: Served, request: Request) -> None:
        raw = message.raw_input_contents[0]
        head = data[: len(data) - len(raw)]
        if not raw or len(head) > _SHORT or not head.endswith(_RAW + _varint(len(raw))):
            return
        if not data.endswith(raw):
            return
        ((name, array),) = request.inputs.items()
        spec = next(spec for spec in served.inputs if spec.name == name)
        model = message.model_name, message.model_version
        said = request.outputs, request.timeout, request.priority
        known = _Known(model, message.id, spec, array.shape, *said)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[len(data)] = head, known


class _Known(NamedTuple):
    """What a message says, but for the bytes of its one tensor."""

    model: tuple[str, str]
    id: str
    spec: TensorSpec
    shape: tuple[int, ...]
    outputs: Sequence[str] | None
    timeout: float | None
    priority: int


def decode(message: Any, served: Served) -> Request:
    """Check and convert a ``ModelInferRequest``. Raises ``BadRequest``."""
    specs = checked([tensor.name for tensor in message.inputs], served)
    raw = message.raw_input_contents
    if raw and len(raw) != len(specs):
        raise BadRequest("raw_input_contents must have one entry for each input, or be empty")
    inputs = {
        spec.name: _rows(tensor, raw[at] if raw else None, spec)
        for at, (tensor, spec) in enumerate(zip(message.inputs, specs, strict=True))
    }
    wanted = [output.name for output in message.outputs]
    for output in message.outputs:
        _check_parameters(output)
    if len(set(wanted)) < len(wanted):
        raise BadRequest("an output is asked for twice")
    given = {name: _value(message.parameters[name]) for name in _USED if name in message.parameters}
    return Request(alike(inputs), wanted or None, request_timeout(given), request_priority(given))


def encode(served: Served, identifier: str, outputs: Mapping[str, Array]) -> bytes:
    """The ``ModelInferResponse``, of which the tensors' bytes are the end."""
    facts, tail = list[tuple[str, str, tuple[int, ...]]](), list[bytes]()
    for name, array in outputs.items():
        spec = served.output_specs[name]
        facts.append((name, spec.datatype, array.shape))
        data = to_bytes(array.astype(spec.dtype, copy=False))
        tail += [_RAW_OUTPUT, _varint(len(data)), data]
    head = _known_head if not identifier else _head
    return b"".join([head(served.name, identifier, tuple(facts)), *tail])


def _head(model: str, identifier: str, outputs: Sequence[tuple[str, str, Sequence[int]]]) -> bytes:
    """An answer without the tensors' bytes."""
    answer = pb.ModelInferResponse(model_name=model, model_version=VERSION, id=identifier)
    for name, datatype, shape in outputs:
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(answer.SerializeToString())


_known_head = lru_cache(maxsize=_REMEMBERED)(_head)


def in_stream(answer: bytes) -> bytes:
    """A ``ModelInferResponse`` as a ``ModelStreamInferResponse``."""
    return b"".join([_INFER_RESPONSE, _varint(len(answer)), answer])


def _varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _rows(tensor: Any, raw: bytes | None, spec: TensorSpec) -> Array:
    _check_parameters(tensor)
    shape = spec.check(tensor.datatype, list(tensor.shape))
    if raw is None:
        return from_values(_contents(tensor, spec.datatype), spec, shape, typed=True)
    if tensor.contents.ListFields():  # empty ones beside raw are what some clients send
        raise BadRequest(f"input {spec.name!r} has contents and raw_input_contents")
    return from_bytes(raw, spec, shape)


def _contents(tensor: Any, datatype: str) -> Any:
    """The numbers of a tensor that is not raw."""
    field = _FIELDS.get(datatype)
    filled = {descriptor.name for descriptor, _ in tensor.contents.ListFields()}
    if field is None or filled - {field}:
        raise BadRequest(
            f"input {tensor.name!r} is {datatype}: send raw_input_contents"
            + (f" or {field}" if field else "")
        )
    return getattr(tensor.contents, field)


def _check_parameters(tensor: Any) -> None:
    for name in ("classification", "shared_memory_region"):
        if name in tensor.parameters and _value(tensor.parameters[name]):
            raise BadRequest(f"{quoted(tensor.name)}: the parameter {name!r} is not supported")


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None
