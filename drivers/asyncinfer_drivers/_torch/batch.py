"""Between tasks and tensors: inputs to batches, outputs back to rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from asyncinfer.errors import InputError
from asyncinfer_drivers._torch.hints import for_item

__all__ = ("Signature", "rows", "to_tensor")


class Signature(NamedTuple):
    """What the tensors of one batch have in common."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
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


def rows(output: Any, count: int) -> list[Any]:
    """A model's output for ``count`` tasks, as one output per task.

    Every tensor becomes a CPU tensor of its own for each task, without the batch dimension.
    Tuples (named ones too), lists and mappings (as ``dict``) of outputs keep their structure; what
    holds no tensor is given to every task. Raises ``ValueError`` if a tensor has no first
    dimension of ``count``.
    """
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.shape[0] != count:
            raise ValueError(
                f"the model returned shape {list(output.shape)} for {count} tasks: "
                "the first dimension has to be the batch"
            )
        unbind_copy: Any = torch.unbind_copy  # its stub says that it returns nothing
        return list(unbind_copy(output.detach().cpu()))
    if isinstance(output, Mapping):
        columns = _transpose([rows(value, count) for value in output.values()], count)
        return [dict(zip(output, values, strict=True)) for values in columns]
    if isinstance(output, tuple | list):
        make = getattr(output, "_make", type(output))
        return [make(values) for values in _transpose([rows(o, count) for o in output], count)]
    return [output] * count


def _transpose(columns: Sequence[Sequence[Any]], count: int) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count
