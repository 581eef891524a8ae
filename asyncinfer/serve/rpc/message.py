"""Messages of the protocol over gRPC: from bytes to requests, from tensors to answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from asyncinfer.serve.core import Request
from asyncinfer.serve.errors import BadRequest, quoted
from asyncinfer.serve.http.body import request_timeout
from asyncinfer.serve.inputs import alike, checked
from asyncinfer.serve.served import VERSION, Served
from asyncinfer.serve.tensors import Array, TensorSpec, from_bytes, from_values

__all__ = ("decode", "encode", "parse", "pb")

#: the messages; generated, without stubs
pb: Any = service_pb2

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
    timeout = _value(message.parameters["timeout"]) if "timeout" in message.parameters else 0
    return Request(alike(inputs), wanted or None, request_timeout({"timeout": timeout}))


def encode(served: Served, identifier: str, outputs: Mapping[str, Array]) -> Any:
    """The ``ModelInferResponse``."""
    specs = {output.name: output for output in served.outputs}
    answer = pb.ModelInferResponse(model_name=served.name, model_version=VERSION, id=identifier)
    for name, array in outputs.items():
        spec = specs[name]
        answer.outputs.add(name=name, datatype=spec.datatype, shape=array.shape)
        answer.raw_output_contents.append(array.astype(spec.dtype, copy=False).tobytes())
    return answer


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
