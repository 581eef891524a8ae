"""Operators by what they do to numbers: move them, or nothing."""

from __future__ import annotations

import operator
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

__all__ = ("MOVES", "NOTHING", "VIEWS", "layer_name", "operator_name")

#: what torch can do with an array of places as with the numbers themselves
MOVES = (
    "view.default",
    "_unsafe_view.default",
    "reshape.default",
    "flatten.using_ints",
    "unflatten.int",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
    "unsqueeze.default",
    "permute.default",
    "transpose.int",
    "t.default",
    "numpy_T.default",
    "swapaxes.default",
    "movedim.int",
    "movedim.intlist",
    "slice.Tensor",
    "select.int",
    "narrow.default",
    "chunk.default",
    "split.Tensor",
    "split.sizes",
    "split_with_sizes.default",
    "tensor_split.sections",
    "unbind.int",
    "flip.default",
    "roll.default",
    "expand.default",
    "expand_as.default",
    "repeat.default",
    "tile.default",
    "index_select.default",
    "channel_shuffle.default",
)
#: what changes nothing while no model is trained
NOTHING = (
    "alias.default",
    "clone.default",
    "contiguous.default",
    "detach.default",
    "detach_.default",
    "dropout.default",
    "feature_dropout.default",
    "alpha_dropout.default",
    "feature_alpha_dropout.default",
    "lift_fresh_copy.default",
    "to.dtype",
    "to.dtype_layout",
    "_to_copy.default",
    "type_as.default",
)
#: what may give the same memory in another form
VIEWS = frozenset(f"aten.{name}" for name in (*MOVES, *NOTHING))


def operator_name(node: fx.Node) -> str:
    """As tables have it: ``aten.conv2d.default``, ``getitem``."""
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, FunctionType):  # whose text is an address
        return node.target.__name__
    return str(node.target)


def layer_name(node: fx.Node) -> str:
    """The module that ``node`` was written in: ``features.0``; the outermost is ``""``."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((str(path) for path, _ in reversed(stack.values())), "")
