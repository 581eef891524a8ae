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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from asyncinfer_drivers._shared.worker import as_exception
from asyncinfer_drivers._torch.mainprogram import MAIN
from asyncinfer_drivers._torch.parcel import reduced

__all__ = ("Area", "Pickled", "load", "packed")

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

    def unmap(self) -> None:
        """Hold nothing of it in memory until the next use."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def empty(self) -> None:
        """Give its memory back, once the other side has it no longer mapped."""
        self.unmap()
        os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self.unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _mapped(self, size: int, *, grow: bool) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            self.unmap()
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


class Pickled(NamedTuple):
    """A value on its way: a small pickle, and the large parts of it beside."""

    text: bytes
    buffers: list[pickle.PickleBuffer]

    @classmethod
    def of(cls, value: Any, *, views: bool = False) -> Pickled:
        """Raises what pickling ``value`` raises, an ``Exception`` in any case.

        With ``views``, tensors that share memory share it there as well, and keep their strides, as
        those of a model have to.
        """
        buffers = list[pickle.PickleBuffer]()
        file = io.BytesIO()
        try:
            _Pickler(file, buffers, views=views).dump(value)
            for buffer in buffers:
                buffer.raw().release()
        except BaseException as error:  # of a class that is sent
            raise as_exception(error) from error
        return cls(file.getvalue(), buffers)

    def into(self, area: Area) -> tuple[bytes, list[int]]:
        """Write the large parts into ``area``; what ``load`` needs besides."""
        return self.text, area.write([buffer.raw() for buffer in self.buffers])


def load(
    text: bytes, sizes: Sequence[int], area: Area, main: Callable[[str], Any] | None = None
) -> Any:
    """What was pickled, with memory of its own.

    ``main`` finds what the main program has defined, where that is another process's.
    """
    unpickler = _Unpickler(io.BytesIO(text), buffers=area.read(sizes))
    unpickler.main = main
    try:
        return unpickler.load()
    except BaseException as error:
        made = as_exception(error)
        made.add_note(unpickler.latest)
        raise made from error


class _Unpickler(pickle.Unpickler):
    main: Callable[[str], Any] | None = None
    #: what was looked up last: if making it fails, most likely the culprit
    latest = ""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        self.latest = global_name
        if self.main is not None and module_name in MAIN:
            return self.main(global_name)
        return super().find_class(module_name, global_name)


class _Pickler(pickle.Pickler):
    """Tensors' bytes go out of the pickle too, as those of arrays do."""

    def __init__(
        self, file: io.BytesIO, buffers: list[pickle.PickleBuffer], *, views: bool
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self._views = views
        self._storages: dict[int, _Storage] = {}

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and _plain(value):
            if self._views:
                return self._viewed(value)
            flat = value.detach().contiguous().flatten()
            return _tensor, (_buffer(flat), value.dtype, tuple(value.shape))
        return reduced(value) if isinstance(value, nn.Module) else NotImplemented

    def _viewed(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        shared = self._storages.setdefault(storage.data_ptr(), _Storage(storage))
        place = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        return _view, (shared, tensor.dtype, *place)


class _Storage:
    """Memory of one or more tensors: pickled once, however many they are."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self._storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        whole = torch.empty(0, dtype=torch.uint8).set_(self._storage)
        return _tensor, (_buffer(whole), torch.uint8, (len(whole),))


def _plain(tensor: torch.Tensor) -> bool:
    """Whether it is but bytes, a dtype and a shape."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
        and not vars(tensor)
    )


def _buffer(flat: torch.Tensor) -> pickle.PickleBuffer:
    array: Any = flat.view(torch.uint8).numpy()
    return pickle.PickleBuffer(array)


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if len(buffer) == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


def _view(
    memory: torch.Tensor,
    dtype: torch.dtype,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> torch.Tensor:
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), offset, shape, stride)


def packed(items: Sequence[Any]) -> Any:
    """What to dump for a list: one block, if it is one of tensors or arrays that agree."""
    value = list(items)
    if len(value) < 2:
        return value
    first = value[0]
    kind = type(first)
    if kind is not torch.Tensor and kind is not np.ndarray:
        return value
    if any(type(v) is not kind for v in value):
        return value
    if not all(_plain(v) for v in value if isinstance(v, torch.Tensor)):
        return value
    if any(v.shape != first.shape or v.dtype != first.dtype for v in value):
        return value
    if kind is np.ndarray:
        plain = first.dtype.isnative and not first.dtype.hasobject
        return _Block(np.stack(value)) if plain else value
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
    return [rows[index, ...].copy() for index in range(len(rows))]
