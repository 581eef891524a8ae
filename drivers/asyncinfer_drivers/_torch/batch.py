"""From tasks to tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from asyncinfer.errors import InputError
from asyncinfer_drivers._torch.hints import for_item
from asyncinfer_drivers._torch.inputs import Bundle

__all__ = ("Signature", "to_tensor")


class Signature(NamedTuple):
    """What the tensors of one batch have in common."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    #: of several inputs: what is to be said of all of them
    bundle: tuple[Any, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Signature:
        """That of one task's tensor."""
        if isinstance(tensor, Bundle):
            return cls(tensor.shape, tensor.dtype, tensor.facts, str(tensor))
        return cls(tensor.shape, tensor.dtype)

    def __str__(self) -> str:
        if self.bundle:
            return self.text
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


def to_tensor(item: Any) -> torch.Tensor:
    """``item`` as a tensor: a tensor, a numpy array, a number or nested lists of numbers.

    It may share the item's memory. Raises ``InputError`` for anything else.
    """
    if isinstance(item, torch.Tensor):
        return item
    try:
        if hasattr(item, "__array__") or hasattr(item, "__array_interface__"):
            array = np.asarray(item)
            plain = array.flags.writeable and min(array.strides, default=0) >= 0
            return torch.from_numpy(array if plain else array.copy())
        return torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"no tensor can be made of this {type(item).__name__}: {error}; {for_item(item)}"
        ) from error
