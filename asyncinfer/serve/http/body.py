"""HTTP bodies: JSON, alone or with tensors as bytes behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncinfer.serve.core import Request, option
from asyncinfer.serve.errors import BadRequest, TooLarge, quoted
from asyncinfer.serve.inputs import alike, checked
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.served import VERSION, Served
from asyncinfer.serve.tensors import Array, Constant, TensorSpec, from_bytes, from_values, to_text

__all__ = ("JSON_LENGTH", "Decoded", "decode", "encode", "request_timeout")

#: the header that says how much of a body is JSON; the rest is tensors
JSON_LENGTH = "Inference-Header-Content-Length"

#: bytes of JSON above which other threads get a turn while it is parsed
_LARGE = 64 * 1024
#: parameters of tensors that ask for what is not done here
_UNSUPPORTED = ("classification", "shared_memory_region")


@dataclass(frozen=True)
class Decoded:
    """One request's body."""

    request: Request
    #: to be repeated in the answer
    id: str | None
    #: the answer has these outputs as bytes rather than JSON
    binary: Mapping[str, bool] = field(default_factory=dict)
    #: and the others so
    binary_default: bool = False


def decode(body: bytearray, json_length: str | None, served: Served, limits: Limits) -> Decoded:
    """Check and convert a body. Raises ``BadRequest`` or ``TooLarge``."""
    length = _json_length(json_length, len(body))
    if length > limits.max_json_bytes:
        raise TooLarge(
            f"{length} bytes of JSON; the server takes {limits.max_json_bytes}: send tensors as "
            "binary data"
        )
    document = _object(_parse(body[:length]), "the body")
    parameters = _parameters(document, "the body")
    inputs = _inputs(document, memoryview(body)[length:], served)
    binary = _outputs(document.get("outputs"))
    identifier = document.get("id")
    if not isinstance(identifier, str | None):
        raise BadRequest("'id' must be a text")
    return Decoded(
        Request(inputs, list(binary) or None, request_timeout(parameters)),
        identifier,
        {name: value for name, value in binary.items() if value is not None},
        option(parameters, "binary_data_output", bool, False),
    )


def encode(decoded: Decoded, served: Served, outputs: Mapping[str, Array]) -> tuple[bytes, int]:
    """The answer's body, and how much of it is JSON (all, if nothing is behind it)."""
    tensors: list[str] = []
    tail: list[bytes] = []
    for name, array in outputs.items():
        spec = next(output for output in served.outputs if output.name == name)
        array = array.astype(spec.dtype, copy=False)
        facts = {"name": name, "datatype": spec.datatype, "shape": list(array.shape)}
        if decoded.binary.get(name, decoded.binary_default):
            tail.append(array.tobytes())
            tensors.append(json.dumps({**facts, "parameters": {"binary_data_size": len(tail[-1])}}))
        else:
            tensors.append(f'{json.dumps(facts)[:-1]}, "data": [{to_text(array)}]}}')
    head = {"model_name": served.name, "model_version": VERSION}
    if decoded.id is not None:
        head["id"] = decoded.id
    text = f'{json.dumps(head)[:-1]}, "outputs": [{", ".join(tensors)}]}}'.encode()
    return b"".join([text, *tail]), len(text)


def request_timeout(parameters: Mapping[str, Any]) -> float | None:
    """Seconds: the parameter ``timeout`` has microseconds, 0 or less for none."""
    microseconds = option(parameters, "timeout", int, 0)
    return microseconds / 1e6 if 0 < microseconds < 1 << 62 else None


def _json_length(header: str | None, total: int) -> int:
    if header is None:
        return total
    if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) <= total):
        raise BadRequest(
            f"{JSON_LENGTH} is {quoted(header)}, which is no length within the {total} bytes sent"
        )
    return int(header)


def _parse(text: bytearray) -> Any:
    """The JSON document; ``BadRequest`` if it is none."""
    hooks: dict[str, Any] = {"parse_constant": Constant}
    if len(text) > _LARGE:
        # functions of Python's own let other threads run, the parser itself does not
        hooks |= {"parse_float": lambda number: float(number), "parse_int": _integer}
    try:
        return json.loads(text.decode(), **hooks)
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {quoted(str(error))}") from None


def _integer(number: str) -> int:
    return int(number)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"{what} must be a JSON array")
    return value


def _parameters(holder: Mapping[str, Any], what: str) -> dict[str, Any]:
    value = holder.get("parameters")
    return {} if value is None else _object(value, f"the parameters of {what}")


def _supported(tensor: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = _parameters(tensor, what)
    for name in _UNSUPPORTED:
        if parameters.get(name):
            raise BadRequest(f"{what}: the parameter {name!r} is not supported")
    return parameters


def _inputs(document: Mapping[str, Any], tail: memoryview, served: Served) -> dict[str, Array]:
    """The inputs' rows; ``tail`` has those that are bytes, in the order of the inputs."""
    tensors = [_object(one, "an input") for one in _list(document.get("inputs"), "'inputs'")]
    specs = checked([tensor.get("name") for tensor in tensors], served)
    found, used = dict[str, Array](), 0
    for tensor, spec in zip(tensors, specs, strict=True):
        found[spec.name], size = _rows(tensor, tail[used:], spec)
        used += size
    if used != len(tail):
        raise BadRequest(f"{len(tail)} bytes follow the JSON, the inputs have {used}")
    return dict(alike(found))


def _rows(tensor: Mapping[str, Any], tail: memoryview, spec: TensorSpec) -> tuple[Array, int]:
    """An input's rows, and how many bytes of ``tail`` they are."""
    shape = spec.check(tensor.get("datatype"), _list(tensor.get("shape"), "a shape"))
    parameters = _supported(tensor, f"input {spec.name!r}")
    if "binary_data_size" not in parameters:
        values = _list(tensor.get("data"), f"the data of input {spec.name!r}")
        return from_values(values, spec, shape), 0
    size = option(parameters, "binary_data_size", int, 0)
    if "data" in tensor or not 0 <= size <= len(tail):
        raise BadRequest(
            f"input {spec.name!r} has a binary_data_size of {quoted(size)}; {len(tail)} bytes "
            "follow the JSON, and 'data' must be absent"
        )
    return from_bytes(tail[:size], spec, shape), size


def _outputs(value: Any) -> dict[str, bool | None]:
    """The outputs asked for, and whether as bytes."""
    wanted: dict[str, bool | None] = {}
    for one in [] if value is None else _list(value, "'outputs'"):
        tensor = _object(one, "an output")
        name = tensor.get("name")
        if not isinstance(name, str) or name in wanted:
            raise BadRequest(f"an output's name is {quoted(name)}: a text is needed, once each")
        parameters = _supported(tensor, f"output {quoted(name)}")
        given = "binary_data" in parameters
        wanted[name] = option(parameters, "binary_data", bool, False) if given else None
    return wanted
