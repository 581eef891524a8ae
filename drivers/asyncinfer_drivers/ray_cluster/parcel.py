"""What travels between a driver and its actor: tensors and arrays as one block, if they agree.

Ray keeps an array's bytes out of the pickle, so that a large block is written once into the
object store's shared memory and read there without a copy. Of tensors it would pickle each one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ("Parcel", "pack", "small", "unpack")

#: bytes that may be copied on the event loop
_LOOP_BYTES = 1 << 16
#: types whose values are always small
_SCALARS = (int, float, bool, complex, type(None))


class Parcel(NamedTuple):
    """A list of tasks' inputs or outputs."""

    #: ``"tensors"``, ``"arrays"`` (rows of one array) or ``"list"``
    kind: str
    items: Any


def pack(items: Sequence[Any]) -> Parcel:
    """One block, if all are tensors or arrays that agree in shape and dtype; else the list."""
    values = list(items)
    kind = type(values[0]) if values else None
    if kind is np.ndarray:
        return _block("arrays", values, values)
    torch = sys.modules.get("torch")
    if torch is not None and kind is torch.Tensor and all(_plain(v, torch) for v in values):
        try:
            return _block("tensors", values, [v.detach().numpy() for v in values])
        except TypeError:  # a dtype that numpy has not
            return Parcel("list", values)
    return Parcel("list", values)


def unpack(parcel: Parcel) -> list[Any]:
    """The list: tensors with memory of their own, arrays as views that must not be written to."""
    kind, items = parcel
    if kind == "tensors":
        import torch

        return [torch.from_numpy(row.copy()) for row in items]
    return list(items)


def small(items: Sequence[Any] | Parcel) -> bool:
    """Whether copying them takes so little that it is done on the event loop."""
    if isinstance(items, Parcel):
        return isinstance(items.items, list) or items.items.nbytes <= _LOOP_BYTES
    total = 0
    for item in items:
        if isinstance(item, str | bytes):
            total += len(item)
        elif not isinstance(item, _SCALARS):
            total += getattr(item, "nbytes", _LOOP_BYTES + 1)
    return total <= _LOOP_BYTES


def _block(kind: str, values: list[Any], arrays: list[Any]) -> Parcel:
    first = arrays[0]
    agree = all(
        type(a) is np.ndarray and a.shape == first.shape and a.dtype == first.dtype for a in arrays
    )
    if not agree or first.dtype.hasobject:
        return Parcel("list", values)
    return Parcel(kind, first[None] if len(arrays) == 1 else np.stack(arrays))


def _plain(value: Any, torch: Any) -> bool:
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_conj()
        and not value.is_neg()
    )
