"""Refuses views that the compiler would take, and give the numbers of in another order.

It keeps channels last, and a view of the same bytes in another shape is the same there as in
PyTorch only if the order of the numbers is. bakenn 1.0.0 looks at ranks, and at axes of 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("check_views",)


def check_views(graph: Any, name: str) -> None:
    """Raise ``ConfigError`` if a view in a float graph would move numbers on the board."""
    for op in graph.ops:
        if type(op).__name__ not in ("FloatReshapeOp", "FloatFlattenOp"):
            continue
        before, after = (tuple(graph.values[value].shape) for value in (op.input, op.output))
        if not (_same(before, after) or _before_linear(graph, op.output)):
            text = f"{op.name} makes {list(after[1:])} of {list(before[1:])}, whose numbers lie in "
            raise ConfigError(
                f"model {name!r} cannot be built for a board: {text}another order where channels "
                "are last; keep the axis of channels, or flatten all for one nn.Linear"
            )


def _same(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether the numbers of both are in the same order with channels last."""
    numbers = np.arange(math.prod(before))
    return np.array_equal(_last(numbers.reshape(before)), _last(numbers.reshape(after)))


def _last(array: NDArray[Any]) -> NDArray[Any]:
    moved = np.moveaxis(array, 1, -1) if array.ndim > 2 else array
    return moved.ravel()


def _before_linear(graph: Any, value: str) -> bool:
    """Whether linear layers alone read ``value``: the compiler moves their weights instead."""
    readers = [op for op in graph.ops if value in op.inputs]
    return bool(readers) and all(type(op).__name__ == "FloatLinearOp" for op in readers)
