"""From a model's output for several tasks to one output for each of them.

Which axis of a tensor, which list holds one entry a task cannot be told from one output. It is told
from two, for different numbers of tasks: what grows with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from asyncinfer_drivers._torch.tree import Node, mapped, opened, plain, same

__all__ = (
    "Misfit",
    "Part",
    "Sample",
    "by_first",
    "divided",
    "learnt",
    "merged",
    "owned",
    "rows",
    "settled",
    "undivided",
)


class Misfit(ValueError):
    """An output is not made as the one that its division was learnt from; says where."""


class Sample:
    """An output, and which item each of its tasks was given."""

    def __init__(self, order: Sequence[int], output: Any) -> None:
        self.order = order
        self.output = output

    def of(self, output: Any) -> Sample:
        """The same for a part of it."""
        return Sample(self.order, output)


@dataclass(frozen=True)
class Axis:
    """A tensor or array: one index of this axis is one task's."""

    axis: int
    ndim: int


@dataclass(frozen=True)
class Each:
    """A list or tuple: one entry is one task's."""


@dataclass(frozen=True)
class Same:
    """A string, a number or None that was the same for all."""

    value: Any


@dataclass(frozen=True)
class Whole:
    """What cannot be told apart: it is one task's only if that task was alone."""

    why: str
    #: whether its first dimension is of length 1 for one task; it is left out then
    first: bool = False


@dataclass(frozen=True)
class Parts:
    """A container, and how each thing in it is divided."""

    node: Node
    children: tuple[Part, ...]


#: how one thing in a model's output is divided among its tasks
Part: TypeAlias = Axis | Each | Same | Whole | Parts


def learnt(one: Sample, other: Sample) -> Part:
    """How outputs like these are divided; for different numbers of tasks, if the model has them."""
    return _learnt(one, other, "the output")


def _learnt(one: Sample, other: Sample, place: str) -> Part:
    old, new = one.output, other.output
    if _arrays(old, new):
        return _axis(one, other, place)
    if plain(old) and plain(new):
        if same(old, new):
            return Same(old)
        return Whole(f"{place} is {old!r} in one call and {new!r} in another")
    before, after = opened(old), opened(new)
    if before is None or after is None:
        return Whole(f"{place} is a {type(new).__name__}")
    if _one_each(one, other):
        return Each()
    if not before.like(after):
        return Whole(f"{place} is not made alike in each call")
    return _parts(one, other, before, after, place)


def _arrays(*values: Any) -> bool:
    return any(all(isinstance(v, kind) for v in values) for kind in (torch.Tensor, np.ndarray))


def _one_each(one: Sample, other: Sample) -> bool:
    """Whether both are lists, as long as there are tasks."""
    if not all(isinstance(s.output, list | tuple) and _long(s) for s in (one, other)):
        return False
    if any(hasattr(s.output, "_fields") for s in (one, other)):
        return False
    return len(one.order) != len(other.order) or not all(_long(one.of(o)) for o in one.output)


def _long(sample: Sample) -> bool:
    """Whether it has something for each task, as far as its length tells."""
    output, count = sample.output, len(sample.order)
    if isinstance(output, torch.Tensor | np.ndarray):
        return count in _shape(output)
    return isinstance(output, list | tuple) and len(output) == count


def _parts(one: Sample, other: Sample, before: Node, after: Node, place: str) -> Part:
    children = [
        _learnt(one.of(old), other.of(new), place + after.place(name))
        for old, new, name in zip(before.children, after.children, after.names, strict=True)
    ]
    parts = Parts(after._replace(children=[]), tuple(children))
    if undivided(parts) is None:
        try:
            divided(parts, other.output, len(other.order))
        except Exception as error:
            kind = after.kind.__name__
            return Whole(f"{place} is a {kind} that cannot be made for one task: {error}")
    return parts


def _axis(one: Sample, other: Sample, place: str) -> Part:
    old, new = one.output, other.output
    if old.ndim != new.ndim:
        return Whole(f"{place} has {old.ndim} dimensions in one call and {new.ndim} in another")
    counts = len(one.order), len(other.order)
    sizes = list(zip(_shape(old), _shape(new), strict=True))
    axes = [at for at, both in enumerate(sizes) if both == counts]
    if counts[0] == counts[1]:
        axes = [at for at in axes if _moves(one, other, at)]
    if len(axes) == 1:
        return Axis(axes[0], new.ndim)
    found = "more than one dimension" if axes else "no dimension"
    why = f"{place}, of shape {list(_shape(new))}, has {found} that is the batch"
    return Whole(why, counts[0] == _first(old) == 1 and _first(new) in (1, counts[1]))


def _first(output: Any) -> Any:
    return next(iter(_shape(output)), None)


def _shape(output: Any) -> tuple[Any, ...]:
    """Of a nested tensor, whose rows differ in shape, the first dimension alone is known."""
    if isinstance(output, torch.Tensor) and output.is_nested:
        return (output.size(0), *[None] * (output.ndim - 1))
    return tuple(output.shape)


def _moves(one: Sample, other: Sample, axis: int) -> bool:
    """Whether what belongs to an item along this axis is at the item's place in both outputs.

    The numbers may differ a little by what else is in the batch; they are nearer to those of the
    same item than to those of another.
    """
    old = [_number(row) for row in _along(one.output, axis)]
    new = [_number(row) for row in _along(other.output, axis)]
    for item, row in zip(other.order, new, strict=True):
        nearest = min(range(len(old)), key=lambda at: float((old[at] - row).abs().sum()))
        if one.order[nearest] != item:
            return False
    return True


def _number(row: Any) -> torch.Tensor:
    return torch.as_tensor(row).to(torch.float64).nan_to_num()


def undivided(part: Part) -> str | None:
    """Why an output cannot be told apart by task, if it cannot."""
    if isinstance(part, Whole):
        return part.why
    if isinstance(part, Parts):
        return next((why for child in part.children if (why := undivided(child))), None)
    return None


def divided(part: Part, output: Any, count: int) -> list[Any]:
    """One output for each of ``count`` tasks, with memory of its own. ``Misfit``."""
    if isinstance(part, Axis):
        return _sliced(part, output, count)
    if isinstance(part, Parts):
        return _transposed(part, output, count)
    if isinstance(part, Each):
        if not isinstance(output, list | tuple) or len(output) != count:
            raise Misfit(f"not one entry for each of {count} tasks")
        return [owned(entry) for entry in output]
    if isinstance(part, Same):
        if not same(part.value, output):
            raise Misfit(f"{output!r} where {part.value!r} was before")
        return [output] * count
    if count != 1:
        raise Misfit(part.why)
    if part.first and _first(output) == 1:
        return _copies(output, 0)
    return [owned(output)]


def _sliced(part: Axis, output: Any, count: int) -> list[Any]:
    if not isinstance(output, torch.Tensor | np.ndarray) or output.ndim != part.ndim:
        raise Misfit(f"a {_shown(output)} where {part.ndim} dimensions were before")
    if _shape(output)[part.axis] != count:
        raise Misfit(f"a {_shown(output)} for {count} tasks")
    return _copies(output, part.axis)


def _shown(output: Any) -> str:
    if not isinstance(output, torch.Tensor | np.ndarray):
        return type(output).__name__
    return f"{type(output).__name__} of shape {list(_shape(output))}"


def _copies(output: Any, axis: int) -> list[Any]:
    if isinstance(output, np.ndarray):
        return [owned(row) for row in _along(output, axis)]
    if output.layout is torch.strided and not output.is_nested:
        unbind_copy: Any = torch.unbind_copy  # its stub says that it returns nothing
        return list(unbind_copy(output.detach().cpu(), axis))
    return [owned(row) for row in _along(output, axis)]


def _along(output: Any, axis: int) -> list[Any]:
    """Views of what belongs to each index of an axis."""
    if isinstance(output, np.ndarray):
        return [np.asanyarray(row) for row in np.moveaxis(output, axis, 0)]
    if output.is_nested:
        return list(output.unbind(axis))
    return [output.select(axis, at) for at in range(output.shape[axis])]


def _transposed(parts: Parts, output: Any, count: int) -> list[Any]:
    node = opened(output)
    if node is None or not parts.node.like(node):
        raise Misfit(f"a {type(output).__name__} that is not made as before")
    pairs = zip(parts.children, node.children, strict=True)
    columns = [divided(part, child, count) for part, child in pairs]
    values = zip(*columns, strict=True) if columns else [()] * count
    return [node.make(task) for task in values]


def owned(output: Any) -> Any:
    """The same with memory of its own: tensors on the CPU and without inference mode's limits."""
    try:
        return mapped(_owned, output)
    except Exception:  # of a class that cannot be made anew from its own parts
        return output


def _owned(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().cpu().clone()
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    return leaf


def merged(one: Part, other: Part) -> Part | None:
    """The two as one, if they differ only in a number or string: that is no task's alone then."""
    if isinstance(one, Same) and isinstance(other, Same):
        if same(one.value, other.value):
            return one
        return Whole(f"a part of the output is {one.value!r} now and {other.value!r} then")
    if isinstance(one, Parts) and isinstance(other, Parts):
        if not one.node.like(other.node):
            return None
        both = zip(one.children, other.children, strict=True)
        children = [found for pair in both if (found := merged(*pair)) is not None]
        return Parts(one.node, tuple(children)) if len(children) == len(one.children) else None
    if isinstance(one, Whole) and isinstance(other, Same):
        return one
    if isinstance(one, Whole) and isinstance(other, Whole):
        return Whole(one.why, one.first and other.first)
    return one if one == other else None


def settled(output: Any) -> bool:
    """Whether an output for one task shows by itself what is the batch: first dimensions alone."""
    if isinstance(output, torch.Tensor | np.ndarray):
        return 1 not in _shape(output)[1:]
    node = opened(output)
    if node is None:
        return True
    if isinstance(output, list | tuple):
        known = len(output) != 1 or hasattr(output, "_fields")
    else:
        known = isinstance(output, Mapping) or is_dataclass(output)
    return known and all(map(settled, node.children))


def rows(output: Any, count: int) -> list[Any]:
    """One output a task of a model whose tensors all have the batch as their first dimension."""
    return divided(by_first(output, count), output, count)


def by_first(output: Any, count: int) -> Part:
    """The division by the first dimension, where that is as long as there are tasks.

    It is what can be said of a model that takes one task a call, and no more.
    """
    if isinstance(output, torch.Tensor | np.ndarray):
        if _first(output) == count:
            return Axis(0, output.ndim)
        return Whole(f"a {_shown(output)} for {count} tasks")
    node = opened(output)
    if node is None:
        return Same(output) if plain(output) else Whole(f"a {type(output).__name__}")
    children = [by_first(child, count) for child in node.children]
    return Parts(node._replace(children=[]), tuple(children))
