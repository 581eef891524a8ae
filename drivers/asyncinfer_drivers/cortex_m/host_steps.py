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
#: what is between a step's brackets
Given: TypeAlias = Sequence[str]

_MARK = " | "
_STEP = re.compile(r"(\w+)\(([-+.\w]+(?:, [-+.\w]+)*)?\)")


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
    if found is None or (make := _MAKERS.get(found[1])) is None:
        return None
    try:
        return make(found[1], found[2].split(", ") if found[2] else [], rank)
    except (ValueError, OverflowError, IndexError):  # no such number, or none at all
        return None


def _axis(text: str, rank: int) -> int | None:
    """An axis of a sample; ``None`` if it is none, as the batch's."""
    if re.fullmatch(r"-?\d+", text) is None:
        return None
    axis = int(text)
    axis = axis - 1 if axis >= 0 else axis + rank
    return axis if 0 <= axis < rank else None


def _is_true(given: Given, at: int, default: bool) -> bool:
    return given[at] == "True" if at < len(given) else default


# ---- over an axis


def _reducing(name: str, given: Given, rank: int) -> Step | None:
    """``argmax`` and others; without an axis over all, which may not be kept: so is the batch."""
    axis, keep = _axis(given[0], rank) if given else None, _is_true(given, 1, default=False)
    if len(given) > 2 or (axis is None and (given or name.startswith("am"))):
        return None
    return lambda array: np.asarray(_REDUCING[name](array, axis=axis, keepdims=keep))


_REDUCING: dict[str, Callable[..., Any]] = {
    "argmax": np.argmax,
    "argmin": np.argmin,
    "amax": np.max,
    "amin": np.min,
}


def _along(name: str, given: Given, rank: int) -> Step | None:
    axis = _axis(given[0], rank)
    if axis is None or len(given) > 1:
        return None
    return lambda array: _ALONG[name](array, axis)


def _log_softmax(array: NDArray[Any], axis: int) -> NDArray[Any]:
    less = array - array.max(axis=axis, keepdims=True)
    return np.asarray(less - np.log(np.exp(less).sum(axis=axis, keepdims=True)))


def _softmax(array: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.asarray(np.exp(_log_softmax(array, axis)))


_ALONG = {"log_softmax": _log_softmax, "softmax": _softmax}


def _norm(_name: str, given: Given, rank: int) -> Step | None:
    """``vector_norm(2, 1, True)``: power, axis, whether it is kept."""
    power, axis, keep = float(given[0]), _axis(given[1], rank), _is_true(given, 2, default=False)
    if axis is None:
        return None
    return lambda array: np.asarray(np.linalg.norm(array, power, axis, keep))


def _normalize(_name: str, given: Given, rank: int) -> Step | None:
    """``normalize(2, 1, 1e-12)``: power, axis, the least that is divided by."""
    power, axis, least = float(given[0]), _axis(given[1], rank), float(given[2])
    if axis is None:
        return None

    def normalized(array: NDArray[Any]) -> NDArray[Any]:
        norm = np.linalg.norm(array, power, axis, keepdims=True)
        with np.errstate(all="ignore"):  # as torch divides by zero
            return np.asarray(array / np.maximum(norm, array.dtype.type(least)))

    return normalized


# ---- in order of size


def _sorted(name: str, given: Given, rank: int) -> Step | None:
    """``sort_values(1, True)``: the axis, whether the largest comes first."""
    axis = _axis(given[0] if given else "-1", rank)
    return _first(name, axis, None, _is_true(given, 1, default=False))


def _topk(name: str, given: Given, rank: int) -> Step | None:
    """``topk_indices(3, 1, True)``: how many, the axis, whether the largest."""
    axis = _axis(given[1] if len(given) > 1 else "-1", rank)
    return _first(name, axis, int(given[0]), _is_true(given, 2, default=True))


def _first(name: str, axis: int | None, count: int | None, largest: bool) -> Step | None:
    if axis is None:
        return None

    def picked(array: NDArray[Any]) -> NDArray[Any]:
        moved = np.moveaxis(array, axis, -1)
        order = moved.argsort(-1, kind="stable")
        if largest:  # of equal numbers the first one still comes first
            order = moved.shape[-1] - 1 - moved[..., ::-1].argsort(-1, kind="stable")[..., ::-1]
        order = order[..., :count]
        found = np.take_along_axis(moved, order, -1) if name.endswith("values") else order
        return np.moveaxis(found, -1, axis)

    return picked


# ---- of another shape or kind


def _select(_name: str, given: Given, rank: int) -> Step | None:
    axis, at = _axis(given[0], rank), int(given[1])
    if axis is None:
        return None
    return lambda array: np.asarray(array.take(at % max(1, array.shape[axis]), axis))


def _squeeze(_name: str, given: Given, rank: int) -> Step | None:
    axis = _axis(given[0], rank)
    if axis is None:
        return None
    return lambda array: array.squeeze(axis) if array.shape[axis] == 1 else array


def _unsqueeze(_name: str, given: Given, rank: int) -> Step | None:
    axis = _axis(given[0], rank + 1)
    return None if axis is None else (lambda array: np.expand_dims(array, axis))


def _to(_name: str, given: Given, _rank: int) -> Step | None:
    kind = _KINDS.get(given[0])
    return kind and (lambda array: array.astype(kind))


_KINDS: dict[str, Any] = {
    "torch.float32": np.float32,
    "torch.int32": np.int32,
    "torch.int64": np.int64,
}


def _comparison(name: str, given: Given, _rank: int) -> Step | None:
    (number,) = map(float, given)
    return lambda array: np.asarray(_COMPARISONS[name](array, number))


_COMPARISONS: dict[str, Callable[[NDArray[Any], float], NDArray[Any]]] = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}

#: what makes a step of its name, of what is in its brackets, and of how many axes a sample has
_MAKERS: dict[str, Callable[[str, Given, int], Step | None]] = {
    **dict.fromkeys(_REDUCING, _reducing),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_COMPARISONS, _comparison),
    **dict.fromkeys(("sort_values", "sort_indices", "argsort"), _sorted),
    **dict.fromkeys(("topk_values", "topk_indices"), _topk),
    "vector_norm": _norm,
    "normalize": _normalize,
    "select": _select,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "to": _to,
}
