"""Sees what a call changes: in a module and around it, and in memory that others read."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from asyncinfer_drivers._torch.inside import Variable, children, is_foreign, is_holder

__all__ = ("Snapshot", "Watch")

#: numbers in a tensor up to which its content is compared; beyond, torch's own count of writes is
_SMALL = 1 << 16
#: what is the same if it is equal; all else if it is the same object
_PLAIN = (int, float, complex, str, bytes, bool, torch.Size)


class Snapshot:
    """What some things hold, to see later whether that has changed."""

    def __init__(self, places: Iterable[Any]) -> None:
        self._before = [(place, content) for place in places if (content := _content(place))]

    def changed(self) -> bool:
        """Whether one holds something else now."""
        return any(not _same(_content(place), before) for place, before in self._before)


class _Numbers:
    """A copy of a tensor or an array, which is the same as one of equal numbers."""

    def __init__(self, numbers: torch.Tensor | np.ndarray[Any, Any]) -> None:
        self._numbers = numbers

    def same(self, other: _Numbers) -> bool:
        one, two = self._numbers, other._numbers
        if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
            return np.asarray(one).tobytes() == np.asarray(two).tobytes()
        return torch.equal(one, two) or torch.allclose(one, two, 0, 0, equal_nan=True)


def _content(place: Any) -> list[Any]:
    """What ``place`` holds, as values to be compared; empty for what cannot change."""
    if isinstance(place, torch.Tensor):
        return _written(place)
    if isinstance(place, np.ndarray):
        return [_Numbers(place.copy())] if place.dtype != object else place.tolist()
    if isinstance(place, bytearray):
        return [bytes(place)]
    if isinstance(place, Variable):
        return [place.variables.get(place.name, Variable)]
    if isinstance(place, type):
        return [] if is_foreign(place) else [part for item in vars(place).items() for part in item]
    if isinstance(place, types.MethodType) or not is_holder(place):
        return []
    names = [*place] if isinstance(place, dict) else []
    return [type(place), *names, *getattr(place, "__dict__", ()), *children(place)]


def _written(tensor: torch.Tensor) -> list[Any]:
    facts: list[Any] = [tensor.shape, tensor.dtype]
    if not tensor.is_inference():
        facts.append(tensor._version)
    if isinstance(tensor, nn.Parameter):  # these are watched, and many
        return facts
    if tensor.numel() <= _SMALL and tensor.layout is torch.strided and not tensor.is_meta:
        facts.append(_Numbers(tensor.detach().clone()))
    return facts


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _Numbers):
        return one.same(other)
    return isinstance(one, _PLAIN) and (one == other or one != one)


class _Shared(RuntimeError):
    """A call was about to write to memory that it shares with others."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops a call before it writes to one of ``tensors``; ``hit`` tells of it later."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = {storage for tensor in tensors if (storage := _storage(tensor))}
        self.hit = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would be imported for that, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._storages and func._schema.is_mutable:
            for number, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[number] if number < len(args) else kwargs.get(argument.name)
                    self._check(value)
        return func(*args, **kwargs)

    def _check(self, value: Any) -> None:
        tensors = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(t, torch.Tensor) and _storage(t) in self._storages for t in tensors):
            self.hit = True
            raise _Shared("the model writes to its weights")


def _storage(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse, or of a kind without memory
        return 0
