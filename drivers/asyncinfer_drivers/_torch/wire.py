"""Objects between two processes: numbers through shared memory, the rest as a small pickle.

Tensors and arrays are written out of the pickle, byte by byte as they are; those of a list that
agree in shape and dtype as one block. Two anonymous files carry them, one each way: no name that
could be left behind, and the system frees them with the last process that has them open.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ("Area", "dump", "load", "packed")

#: bytes of a new area; it grows as needed
_FIRST_SIZE = 1 << 16
#: each buffer starts at a multiple of this
_ALIGNED = 64


class Area:
    """Memory that two processes share: one writes, the other reads, taking turns."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _anonymous_file() if fd is None else fd
        self._map: mmap.mmap | None = None

    def write(self, parts: Sequence[Any]) -> list[int]:
        """Write buffers one after another; their sizes in bytes."""
        views = [memoryview(part).cast("B") for part in parts]
        sizes = [view.nbytes for view in views]
        memory = self._mapped(sum(map(_aligned, sizes)), grow=True)
        at = 0
        for view, size in zip(views, sizes, strict=True):
            memory[at : at + size] = view
            at += _aligned(size)
        return sizes

    def read(self, sizes: Sequence[int]) -> list[bytearray]:
        """Copies of buffers of these sizes, as ``write`` has put them there."""
        memory = memoryview(self._mapped(sum(map(_aligned, sizes)), grow=False))
        parts, at = list[bytearray](), 0
        with memory:
            for size in sizes:
                with memory[at : at + size] as part:
                    parts.append(bytearray(part))
                at += _aligned(size)
        return parts

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _mapped(self, size: int, *, grow: bool) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            if self._map is not None:
                self._map.close()
            if grow:
                os.ftruncate(self.fd, max(2 * size, _FIRST_SIZE))
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        return self._map


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("asyncinfer")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def dump(value: Any, area: Area) -> tuple[bytes, list[int]]:
    """Write ``value`` into ``area``: what ``load`` needs besides. Raises what pickling raises."""
    buffers = list[pickle.PickleBuffer]()
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    return file.getvalue(), area.write([buffer.raw() for buffer in buffers])


def load(text: bytes, sizes: Sequence[int], area: Area) -> Any:
    """What was dumped, with memory of its own."""
    return pickle.loads(text, buffers=area.read(sizes))  # noqa: S301  # from our own process


class _Pickler(pickle.Pickler):
    """Tensors' bytes go out of the pickle too, as those of arrays do."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.device.type == "cpu" and _plain(value):
            flat: Any = value.detach().contiguous().flatten().view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(flat), value.dtype, tuple(value.shape))
        return NotImplemented


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_conj()


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if len(buffer) == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


def packed(items: Sequence[Any]) -> Any:
    """What to dump for a list: one block, if it is one of tensors or arrays that agree."""
    value = list(items)
    if len(value) < 2:
        return value
    first = value[0]
    kind = type(first)
    if kind is not torch.Tensor and kind is not np.ndarray:
        return value
    if any(type(v) is not kind or v.shape != first.shape or v.dtype != first.dtype for v in value):
        return value
    if kind is np.ndarray:
        return value if first.dtype.hasobject else _Block(np.stack(value))
    if any(v.device.type != "cpu" or not _plain(v) for v in value):
        return value
    with torch.no_grad():
        return _Block(torch.stack(value))


class _Block:
    """Stands for the list of its rows, each with memory of its own."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        return _unblocked, (self._rows,)


def _unblocked(rows: Any) -> list[Any]:
    if isinstance(rows, torch.Tensor):
        unbind_copy: Any = torch.unbind_copy  # its stub says that it returns nothing
        return list(unbind_copy(rows))
    return [row.copy() for row in rows]
