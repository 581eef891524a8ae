"""What to do about errors that a model raises, where its own words do not say."""

from __future__ import annotations

import re
from typing import Any

__all__ = ("for_input", "for_item")

#: Python's words, and TorchScript's, for a forward that takes more than it was given
_MISSING = re.compile(
    r"missing \d+ required (positional|keyword-only) argument|missing value for argument"
)
#: what torch raises for a shape
_OF_SHAPES = (RuntimeError, ValueError, IndexError, AssertionError)
_SEVERAL = (
    "the model takes several tensors for one task: give each task as a mapping of its forward's "
    "arguments to tensors, or as a tuple of tensors in their order"
)


def for_input(error: BaseException, shape: tuple[int, ...], good: tuple[int, ...] | None) -> str:
    """What to do about the model's ``error`` for an input of that ``shape``; or ``""``.

    ``good`` is a shape that it has accepted.
    """
    if isinstance(error, TypeError | RuntimeError) and _MISSING.search(str(error)):
        return _SEVERAL
    if len(shape) < 2 or shape[0] != 1 or not isinstance(error, _OF_SHAPES):
        return ""
    if good is None:
        return (
            "if its first dimension is the batch's, give it without, as "
            f"{list(shape[1:])}: the driver adds it"
        )
    if len(good) == len(shape) - 1:
        return f"inputs are given without the batch dimension, as {list(shape[1:])}"
    return ""


def for_item(item: Any) -> str:
    """What to do about an input that no tensor can be made of."""
    if isinstance(item, list | tuple) and item:
        if all(hasattr(part, "shape") for part in item):
            return (
                "several tensors of one task are given as a tuple, in the order of the forward's "
                "arguments, or as a mapping by their names, to a model that takes several"
            )
        if any(isinstance(part, list | tuple) for part in item):
            return "lists have to be equally long: pad them in a preprocess, or a batch in collate"
    return "give tensors, arrays or numbers, or a preprocess that returns them"
