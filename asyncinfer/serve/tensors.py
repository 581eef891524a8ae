"""Tensors as the protocol has them: datatypes, shapes, and the numbers inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from asyncinfer.errors import ConfigError
from asyncinfer.serve.errors import BadRequest, quoted

__all__ = (
    "DATATYPES",
    "Array",
    "Constant",
    "TensorSpec",
    "datatype_of",
    "from_bytes",
    "from_values",
    "to_bytes",
    "to_text",
)

Array: TypeAlias = np.ndarray[Any, Any]


class Constant(float):
    """``NaN``, ``Infinity`` or ``-Infinity`` where JSON should be: no number that is too large."""


_DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
#: those that are served, as the protocol calls them
DATATYPES = tuple(_DTYPES)
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
#: what a client's numbers may be, by the kind of dtype they become
_KINDS: dict[str, set[type]] = {
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float, Constant},
}
#: how those numbers are written that JSON has not
_NOT_FINITE = {"nan": "null", "inf": "Infinity", "-inf": "-Infinity"}
#: numbers converted without letting other threads run
_CHUNK = 2048


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    #: as the protocol calls it: FP32, INT64, ...
    datatype: str
    #: without the batch dimension; -1 for any size
    shape: tuple[int, ...]
    #: whether a request may leave it out
    optional: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy calls it."""
        return _DTYPES[self.datatype]

    def metadata(self) -> dict[str, Any]:
        """As the protocol describes it, with the batch dimension."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}

    def check(self, datatype: object, shape: Sequence[object]) -> tuple[int, ...]:
        """The shape of a request's tensor, if this model takes it; else ``BadRequest``."""
        if datatype != self.datatype:
            raise BadRequest(
                f"input {self.name!r} is {self.datatype}, not {quoted(datatype)}: convert it"
            )
        sizes = tuple(size for size in shape if type(size) is int)
        good = len(sizes) == len(shape) == len(self.shape) + 1 and all(size > 0 for size in sizes)
        if not good or any(b not in (-1, a) for a, b in zip(sizes[1:], self.shape, strict=True)):
            expected = [-1, *self.shape]
            raise BadRequest(
                f"input {self.name!r} has the shape {expected}, batch first, not "
                f"{quoted(list(shape[:16]))}"
            )
        return sizes


def datatype_of(dtype: np.dtype[Any], what: str) -> str:
    """The protocol's name of a dtype; ``ConfigError`` if it has none that is served."""
    try:
        return _DATATYPES[dtype.newbyteorder("<")]
    except KeyError:
        raise ConfigError(f"{what} has the dtype {dtype}, which cannot be served") from None


def from_bytes(
    data: bytes | bytearray | memoryview, spec: TensorSpec, shape: Sequence[int]
) -> Array:
    """The tensor in ``data``, little-endian and row by row, without a copy where it is aligned."""
    needed = math.prod(shape) * spec.dtype.itemsize
    if len(data) != needed:
        raise BadRequest(
            f"input {spec.name!r} has {len(data)} bytes, its shape and datatype need {needed}"
        )
    array = np.frombuffer(data, spec.dtype)
    if spec.datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise BadRequest(f"input {spec.name!r} is BOOL, and has bytes other than 0 and 1")
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def from_values(
    values: Sequence[Any], spec: TensorSpec, shape: Sequence[int], *, typed: bool = False
) -> Array:
    """The tensor of numbers in a list, flat or nested as ``shape`` says; else ``BadRequest``.

    With ``typed`` they have been numbers of this size before, rather than text.
    """
    flat = _flat(values, spec, shape)
    if len(flat) != math.prod(shape):
        raise BadRequest(
            f"input {spec.name!r} has {len(flat)} values, its shape needs {math.prod(shape)}"
        )
    array = np.empty(len(flat), spec.dtype)
    for start in range(0, len(flat), _CHUNK):
        array[start : start + _CHUNK] = _numbers(flat[start : start + _CHUNK], spec, typed)
    return array.reshape(shape)


def to_bytes(array: Array) -> bytes:
    """The numbers of a tensor, row by row."""
    return array.tobytes()


def to_text(array: Array) -> str:
    """The numbers of a tensor as JSON has them, flat.

    JSON has neither NaN nor infinity. ``null`` is read as NaN wherever numbers are made of it, and
    is JSON; of infinity it would make NaN. So that is ``Infinity``, as Triton and Python write it:
    who does not know it refuses the whole answer.
    """
    flat = array.reshape(-1)
    if array.dtype.kind == "f" and not np.isfinite(flat).all():
        return ",".join(_NOT_FINITE.get(text, text) for text in map(repr, flat.tolist()))
    parts = (flat[at : at + _CHUNK].tolist() for at in range(0, len(flat), _CHUNK))
    return ",".join(_text(part) for part in parts)


def _text(values: list[Any]) -> str:
    text = ",".join(map(repr, values))
    return text.lower() if values and type(values[0]) is bool else text


def _flat(values: Sequence[Any], spec: TensorSpec, shape: Sequence[int]) -> Sequence[Any]:
    if not (isinstance(values, list) and any(type(value) is list for value in values)):
        return values
    level = [values]
    for size in shape:
        if not all(type(part) is list and len(part) == size for part in level):
            raise BadRequest(f"the lists of input {spec.name!r} are not nested as its shape says")
        level = list(chain.from_iterable(level))
    return level


def _numbers(values: Sequence[Any], spec: TensorSpec, typed: bool) -> Array:
    wrong = set(map(type, values)) - _KINDS[spec.dtype.kind]
    if wrong:
        kind = min(kind.__name__ for kind in wrong)
        raise BadRequest(f"input {spec.name!r} is {spec.datatype}, and has values of type {kind}")
    if spec.dtype.kind == "f":
        return _floats(values, spec, typed)
    if spec.dtype.kind in "iu":
        info = np.iinfo(spec.dtype)
        if min(values) < info.min or max(values) > info.max:
            raise _out_of_range(spec)
    return np.array(values, spec.dtype)


def _floats(values: Sequence[Any], spec: TensorSpec, typed: bool) -> Array:
    try:
        wide = np.array(values, np.float64)
    except OverflowError:
        raise _out_of_range(spec) from None
    with np.errstate(over="ignore"):
        array = wide.astype(spec.dtype)
    # rounded first: the shortest text of the largest number is a little more than that number
    beyond = np.flatnonzero(~np.isfinite(array)).tolist()
    if not typed and any(type(values[at]) in (int, float) for at in beyond):
        raise _out_of_range(spec)
    return array


def _out_of_range(spec: TensorSpec) -> BadRequest:
    return BadRequest(f"input {spec.name!r} has values out of the range of {spec.datatype}")
