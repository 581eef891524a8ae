"""What a board leaves to its host: ``argmax`` and the like, at the end of a model.

The name of an output says it, as in ``output['label'] | argmax(1)``, with axes as PyTorch counts
them, the batch's among them. So a driver knows it from HELLO alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ("known", "named", "split", "steps_of")

#: from one sample's output to another
Step: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

_MARK = " | "
_STEP = re.compile(r"(\w+)\(([-+.\w]*)\)")


def named(name: str, steps: Sequence[str]) -> str:
    """The name of an output of which ``steps`` are left to the host."""
    return _MARK.join([name, *steps])


def split(name: str) -> tuple[str, tuple[str, ...]]:
    """The name without its steps, and these."""
    name, *steps = name.split(_MARK)
    return name, tuple(steps)


def known(steps: Sequence[str], rank: int) -> bool:
    """Whether a driver can do all of them, for a sample of so many axes."""
    shape = (1,) * rank
    for text in steps:
        step = _step(text, len(shape))
        if step is None:
            return False
        shape = step(np.zeros(shape, np.float32)).shape
    return True


def steps_of(name: str) -> Step:
    """All steps in the name of an output; those that are not known are left out."""
    texts = split(name)[1]

    def all_of_them(array: NDArray[Any]) -> NDArray[Any]:
        for text in texts:
            step = _step(text, array.ndim)
            if step is None:
                break
            array = step(array)
        return array

    return all_of_them


def _step(text: str, rank: int) -> Step | None:
    found = _STEP.fullmatch(text)
    if found is None:
        return None
    name, given = found.groups()
    if name in _COMPARISONS:
        return _comparison(name, given)
    if name not in _ALONG:
        return None
    if not given:
        return _ALONG[name](None) if name in ("argmax", "argmin") else None
    axis = _axis(given, rank)
    return None if axis is None else _ALONG[name](axis)


def _axis(text: str, rank: int) -> int | None:
    """An axis of a sample; ``None`` if it is none, as the batch's."""
    if re.fullmatch(r"-?\d+", text) is None:
        return None
    axis = int(text)
    axis = axis - 1 if axis >= 0 else axis + rank
    return axis if 0 <= axis < rank else None


def _log_softmax(array: NDArray[Any], axis: int | None) -> NDArray[Any]:
    less = array - array.max(axis=axis, keepdims=True)
    return np.asarray(less - np.log(np.exp(less).sum(axis=axis, keepdims=True)))


_ALONG: dict[str, Callable[[int | None], Step]] = {
    "argmax": lambda axis: lambda array: np.asarray(array.argmax(axis)),
    "argmin": lambda axis: lambda array: np.asarray(array.argmin(axis)),
    "log_softmax": lambda axis: lambda array: _log_softmax(array, axis),
    "softmax": lambda axis: lambda array: np.exp(_log_softmax(array, axis)),
}
_COMPARISONS: dict[str, Callable[[NDArray[Any], float], NDArray[Any]]] = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}


def _comparison(name: str, given: str) -> Step | None:
    try:
        number = float(given)
    except ValueError:
        return None
    return lambda array: np.asarray(_COMPARISONS[name](array, number))
