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

from asyncinfer_drivers.cortex_m.places import after_place

__all__ = ("known", "named", "split", "steps_of")

#: from one sample's output to another
Step: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

_MARK = " | "
_STEP = re.compile(r"(\w+)\(([-+.\w]*)(, True|, False)?\)")


def named(name: str, steps: Sequence[str]) -> str:
    """The name of an output of which ``steps`` are left to the host."""
    return _MARK.join([name, *steps])


def split(name: str) -> tuple[str, tuple[str, ...]]:
    """The name without its steps, and these."""
    start = after_place(name)
    rest, *steps = name[start:].split(_MARK)
    return name[:start] + rest, tuple(steps)


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
    name, given, keep = found.groups()
    if name in _REDUCING:
        return _reducing(name, given, keep == ", True", rank)
    if keep:
        return None
    if name in _COMPARISONS:
        return _comparison(name, given)
    if name == "to":
        kind = _KINDS.get(given)
        return kind and (lambda array: array.astype(kind))
    axis = _axis(given, rank)
    if axis is None or name not in _ALONG:
        return None
    return lambda array: _ALONG[name](array, axis)


def _reducing(name: str, given: str, keep: bool, rank: int) -> Step | None:
    """``argmax`` and others; without an axis over all, which may not be kept: so is the batch."""
    axis = _axis(given, rank)
    if axis is None and (given or keep or name.startswith("am")):
        return None
    return lambda array: np.asarray(_REDUCING[name](array, axis=axis, keepdims=keep))


def _axis(text: str, rank: int) -> int | None:
    """An axis of a sample; ``None`` if it is none, as the batch's."""
    if re.fullmatch(r"-?\d+", text) is None:
        return None
    axis = int(text)
    axis = axis - 1 if axis >= 0 else axis + rank
    return axis if 0 <= axis < rank else None


def _log_softmax(array: NDArray[Any], axis: int) -> NDArray[Any]:
    less = array - array.max(axis=axis, keepdims=True)
    return np.asarray(less - np.log(np.exp(less).sum(axis=axis, keepdims=True)))


def _softmax(array: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.asarray(np.exp(_log_softmax(array, axis)))


_ALONG = {"log_softmax": _log_softmax, "softmax": _softmax}
_REDUCING: dict[str, Callable[..., Any]] = {
    "argmax": np.argmax,
    "argmin": np.argmin,
    "amax": np.max,
    "amin": np.min,
}
_KINDS: dict[str, Any] = {
    "torch.float32": np.float32,
    "torch.int32": np.int32,
    "torch.int64": np.int64,
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
