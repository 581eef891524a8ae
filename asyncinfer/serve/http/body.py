"""HTTP bodies: JSON, alone or with tensors as bytes behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeAlias

from asyncinfer.serve.claims import request_priority
from asyncinfer.serve.core import Request, option
from asyncinfer.serve.errors import BadRequest, TooLarge, quoted
from asyncinfer.serve.inputs import alike, checked
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.served import VERSION, Served
from asyncinfer.serve.tensors import (
    Array,
    Constant,
    TensorSpec,
    from_bytes,
    from_values,
    to_bytes,
    to_text,
)

__all__ = ("JSON_LENGTH", "Decoded", "Decoder", "encode", "request_timeout")

#: the header that says how much of a body is JSON; the rest is tensors
JSON_LENGTH = "Inference-Header-Content-Length"

#: bytes of JSON above which other threads get a turn while it is parsed
_LARGE = 64 * 1024
#: bytes of JSON up to which it is remembered what it says
_SHORT = 2048
#: how many such, and heads of answers
_REMEMBERED = 256
#: parameters of tensors that ask for what is not done here
_UNSUPPORTED = ("classification", "shared_memory_region")
#: name, datatype, shape, and bytes behind the JSON of an output
_Facts: TypeAlias = tuple[str, str, tuple[int, ...], int | None]


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


@dataclass(frozen=True)
class _Given:
    """An input as the JSON has it."""

    spec: TensorSpec
    shape: tuple[int, ...]
    #: bytes behind the JSON that are its numbers; ``None`` if these are ``values``
    size: int | None
    values: list[Any]

    def array(self, tail: memoryview) -> Array:
        """Its rows, of bytes that begin with its own."""
        if self.size is None:
            return from_values(self.values, self.spec, self.shape)
        if self.size > len(tail):
            raise _wrong_size(self.spec, self.size, len(tail))
        return from_bytes(tail[: self.size], self.spec, self.shape)


@dataclass(frozen=True)
class _Head:
    """What the JSON of a request says."""

    inputs: Sequence[_Given]
    #: the outputs asked for; empty for all
    wanted: Sequence[str]
    #: of those for which it is said, whether as bytes
    binary: Mapping[str, bool]
    id: str | None
    timeout: float | None
    priority: int
    binary_default: bool


class Decoder:
    """Checks and converts the bodies of requests for one model.

    It remembers what short JSON says that has bytes behind it: most requests have the same as one
    before.
    """

    def __init__(self, served: Served, limits: Limits) -> None:
        self._most = limits.max_json_bytes
        self._head: Callable[[bytes], _Head] = partial(_head, served)
        self._known_head = lru_cache(maxsize=_REMEMBERED)(self._head)

    def __call__(self, body: bytearray, json_length: str | None) -> Decoded:
        """What is in the body. Raises ``BadRequest`` or ``TooLarge``."""
        length = _json_length(json_length, len(body))
        if length > self._most:
            raise TooLarge(
                f"{length} bytes of JSON; the server takes {self._most}: send tensors as binary "
                "data"
            )
        view = memoryview(body)
        short = length < len(body) and length <= _SHORT
        head = (self._known_head if short else self._head)(bytes(view[:length]))
        inputs = _inputs(head.inputs, view[length:])
        request = Request(inputs, head.wanted or None, head.timeout, head.priority)
        return Decoded(request, head.id, head.binary, head.binary_default)


def encode(decoded: Decoded, served: Served, outputs: Mapping[str, Array]) -> tuple[bytes, int]:
    """The answer's body, and how much of it is JSON (all, if nothing is behind it)."""
    tail: list[bytes] = []
    facts: list[_Facts] = []
    texts: list[str] = []
    for name, array in outputs.items():
        spec = served.output_specs[name]
        array = array.astype(spec.dtype, copy=False)
        binary = decoded.binary.get(name, decoded.binary_default)
        if binary:
            tail.append(to_bytes(array))
        else:
            texts.append(to_text(array))
        facts.append((name, spec.datatype, array.shape, len(tail[-1]) if binary else None))
    if texts or decoded.id is not None:
        text = _answer_head(served.name, decoded.id, tuple(facts), texts)
    else:
        text = _known_answer_head(served.name, tuple(facts))
    return b"".join([text, *tail]), len(text)


def _answer_head(
    model: str, identifier: str | None, tensors: Sequence[_Facts], texts: Iterable[str] = ()
) -> bytes:
    """The JSON of an answer; ``texts`` has the numbers of those tensors that are not bytes."""
    told, numbers = list[str](), iter(texts)
    for name, datatype, shape, size in tensors:
        facts: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
        if size is not None:
            told.append(json.dumps({**facts, "parameters": {"binary_data_size": size}}))
        else:
            told.append(f'{json.dumps(facts)[:-1]}, "data": [{next(numbers)}]}}')
    head = {"model_name": model, "model_version": VERSION}
    if identifier is not None:
        head["id"] = identifier
    return f'{json.dumps(head)[:-1]}, "outputs": [{", ".join(told)}]}}'.encode()


@lru_cache(maxsize=_REMEMBERED)
def _known_answer_head(model: str, tensors: tuple[_Facts, ...]) -> bytes:
    return _answer_head(model, None, tensors)


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


def _parse(text: bytes) -> Any:
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


def _head(served: Served, text: bytes) -> _Head:
    """What the JSON says, checked."""
    document = _object(_parse(text), "the body")
    parameters = _parameters(document, "the body")
    tensors = [_object(one, "an input") for one in _list(document.get("inputs"), "'inputs'")]
    specs = checked([tensor.get("name") for tensor in tensors], served)
    inputs = [_given(tensor, spec) for tensor, spec in zip(tensors, specs, strict=True)]
    outputs, identifier = _outputs(document.get("outputs")), document.get("id")
    if not isinstance(identifier, str | None):
        raise BadRequest("'id' must be a text")
    default = option(parameters, "binary_data_output", bool, False)
    binary = {name: value for name, value in outputs.items() if value is not None}
    timeout = request_timeout(parameters)
    priority = request_priority(parameters)
    return _Head(inputs, list(outputs), binary, identifier, timeout, priority, default)


def _inputs(given: Iterable[_Given], tail: memoryview) -> Mapping[str, Array]:
    """The inputs' rows; ``tail`` has those that are bytes, in the order of the inputs."""
    found, used = dict[str, Array](), 0
    for one in given:
        found[one.spec.name] = one.array(tail[used:])
        used += one.size or 0
    if used != len(tail):
        raise BadRequest(f"{len(tail)} bytes follow the JSON, the inputs have {used}")
    return alike(found)


def _given(tensor: Mapping[str, Any], spec: TensorSpec) -> _Given:
    shape = spec.check(tensor.get("datatype"), _list(tensor.get("shape"), "a shape"))
    parameters = _supported(tensor, f"input {spec.name!r}")
    if "binary_data_size" not in parameters:
        values = _list(tensor.get("data"), f"the data of input {spec.name!r}")
        return _Given(spec, shape, None, values)
    size = option(parameters, "binary_data_size", int, 0)
    if "data" in tensor:
        raise BadRequest(
            f"input {spec.name!r} has a binary_data_size of {quoted(size)}: 'data' must be absent"
        )
    if size < 0:
        raise _wrong_size(spec, size, 0)
    return _Given(spec, shape, size, [])


def _wrong_size(spec: TensorSpec, size: int, left: int) -> BadRequest:
    return BadRequest(
        f"input {spec.name!r} has a binary_data_size of {quoted(size)}; {left} bytes follow "
        "the JSON"
    )


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
