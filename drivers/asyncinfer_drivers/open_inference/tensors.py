"""Between inputs, arrays and the bytes of the protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from asyncinfer.errors import InputError

__all__ = (
    "DATATYPES",
    "Array",
    "Given",
    "Head",
    "Message",
    "Received",
    "from_received",
    "given",
    "is_torch",
    "to_array",
)

Array: TypeAlias = np.ndarray[Any, Any]

#: name, datatype, shape and bytes of a tensor
Head: TypeAlias = tuple[str, str, tuple[int, ...], int]

#: what holds the protocol's datatypes; all numbers are little-endian
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "BF16": np.dtype("<f4"),  # here: numpy has no such type, and every such number is one of these
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}


class Given(NamedTuple):
    """A tensor to send."""

    #: the description: all but the bytes, and how many these are
    head: Head
    #: what has its bytes, in as many parts as there were rows or texts
    parts: Sequence[bytes | memoryview]


class Received(NamedTuple):
    """A tensor that came: as bytes, or as numbers one by one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview | None
    values: Sequence[Any] = ()


class Message(NamedTuple):
    """A request or reply, as bytes."""

    body: bytes
    #: over HTTP: the length of the JSON at the start, if tensors follow
    head: int | None = None


def is_torch(item: object) -> bool:
    """Whether it is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.Tensor)


def to_array(item: Any, datatype: str, name: str) -> Array:
    """``item`` in that datatype; ``InputError`` about input ``name`` if its numbers would change.

    Real numbers may lose digits, as from float64 to float32, and do not become infinite. An array
    of numbers is contiguous.
    """
    wanted = DATATYPES[datatype]
    try:
        array = np.asarray(_plain(item), object if wanted.kind == "O" else None)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = type(item).__name__
        raise InputError(f"input {name!r}: no array can be made of this {kind}") from error
    if array.dtype.name == "bfloat16":  # of ml_dtypes, as tritonclient returns them
        array = array.astype(np.float32)
    if wanted.kind == "O":
        if all(isinstance(one, str | bytes) for one in array.flat):
            return array
    elif array.dtype == wanted:
        return array if array.flags.c_contiguous else array.copy()
    elif array.dtype.kind in "fiub":
        with np.errstate(all="ignore"):
            cast = array.astype(wanted, "C")
        if _are_the_same(array, cast):
            return cast
        text = f"the model takes {datatype}, which not all of its numbers are"
        raise InputError(f"input {name!r} is {array.dtype}, {text}")
    raise InputError(f"input {name!r} is {array.dtype}, the model takes {datatype}")


def _are_the_same(numbers: Array, cast: Array) -> bool:
    """Whether numbers are still what they were; real ones may have lost digits."""
    if np.can_cast(numbers.dtype, cast.dtype, "safe"):
        return True
    if cast.dtype.kind != "f":  # an integer too large wraps around, into its own kind too
        return np.array_equal(cast, numbers)
    finite = np.isfinite(cast)
    return bool(finite.all()) or np.array_equal(finite, np.isfinite(numbers))


def _plain(item: Any) -> Any:
    """A torch tensor as what numpy can read."""
    if not is_torch(item):
        return item
    tensor = item.detach().cpu()
    return tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor


def given(name: str, datatype: str, shape: tuple[int, ...], arrays: Sequence[Array]) -> Given:
    """The tensor made of contiguous ``arrays``; numbers are not copied, but for BF16."""
    if datatype == "BF16":
        arrays = [_as_bf16(array) for array in arrays]
    if arrays[0].dtype.kind != "O":
        size = arrays[0].nbytes * len(arrays)
        return Given((name, datatype, shape, size), [array.data for array in arrays])
    parts = [_text(one) for array in arrays for one in array.flat]
    return Given((name, datatype, shape, sum(map(len, parts))), parts)


def _text(one: str | bytes) -> bytes:
    data = one.encode() if isinstance(one, str) else bytes(one)
    return len(data).to_bytes(4, "little") + data


def from_received(tensor: Received) -> Array:
    """The array of a tensor; it may be read-only. ``ValueError`` if its size is not its shape's."""
    wanted = DATATYPES.get(tensor.datatype)
    if wanted is None:
        raise ValueError(f"datatype {tensor.datatype!r} is unknown")
    if tensor.raw is None:
        array = _of_values(tensor.values, wanted)
    elif wanted.kind == "O":
        array = np.asarray(_texts(bytes(tensor.raw)), wanted)
    elif tensor.datatype == "BF16":
        array = (np.frombuffer(tensor.raw, "<u2").astype("<u4") << 16).view(wanted)
    else:
        array = np.frombuffer(tensor.raw, wanted)
    return array.reshape(tensor.shape)


def _of_values(values: Sequence[Any], wanted: np.dtype[Any]) -> Array:
    """Of numbers or texts one by one; null is no number, so only a float can be that."""
    if wanted.kind == "O":
        return np.asarray([one.encode() if isinstance(one, str) else one for one in values], wanted)
    if wanted.kind != "f":
        if None in values:
            raise ValueError("null where numbers without NaN are expected")
        array = np.asarray(values)
        if array.dtype.kind == "f" and not np.array_equal(array, array.astype(wanted)):
            raise ValueError(f"numbers that are no {wanted.name}")
    return np.asarray(values, wanted)


def _as_bf16(array: Array) -> Array:
    """The upper halves of numbers of FP32, rounded to the nearest, of two to the even one."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return np.where(np.isnan(array), bits | 0x400000, rounded).__rshift__(16).astype("<u2")


def _texts(data: bytes) -> list[bytes]:
    texts, at = list[bytes](), 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            raise ValueError("a text ends too early")
        texts.append(data[at + 4 : end])
        at = end
    return texts
