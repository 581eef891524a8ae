"""The float graph that is being made, and where each of PyTorch's numbers lies in it.

The compiler's values lie on the board as ``[height, width, channels]`` or as a vector. A tensor of
PyTorch is held as such a value and an array of the tensor's shape: for each number its place in
the value's memory. So ``permute``, ``reshape`` or a channel shuffle cost nothing: they change the
array. What needs its numbers in a certain order asks for a ``Map``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncinfer_drivers.cortex_m.builder.rewriting.custom import Pointwise, operators
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import Refusal, WrongLayout

__all__ = ("Held", "Map", "Net")

Index = NDArray[np.int64]
Floats = NDArray[np.float32]

#: for tensors of so many axes beside the batch: what an axis may be on the board, likely first
_ROLES = {
    rank: [roles for size in (3, 2, 1) for roles in _found if len(roles) == size == rank]
    for rank, _found in {
        1: ["C", "W"],
        2: ["CW", "WC", "HW"],
        3: ["CHW", "HWC", "WHC", "CWH", "HCW", "WCH"],
    }.items()
}
#: most pieces that one value is cut into where its numbers are picked
_PIECES = 32


@dataclass(frozen=True)
class Held:
    """A tensor of PyTorch: where its numbers lie in the memory of the value ``name``."""

    name: str
    #: of the tensor's shape, the batch included
    index: Index


@dataclass(frozen=True)
class Map:
    """A tensor with channels, height and width, all numbers of the value ``name``."""

    name: str
    channels: int
    height: int
    width: int
    #: for each axis of the tensor but the batch: ``C``, ``H`` or ``W``
    roles: str
    #: for each of the tensor's channels its place on the board
    places: Index

    @property
    def ordered(self) -> bool:
        """Whether the board has the channels in the tensor's order."""
        return bool((self.places == np.arange(self.channels)).all())

    def held(self) -> Held:
        """As a tensor again."""
        sizes = {"C": self.channels, "H": self.height, "W": self.width}
        row = np.arange(self.height * self.width).reshape(self.height, self.width)
        index = self.places[:, None, None] + self.channels * row
        index = index.transpose(["CHW".index(role) for role in self._all_roles()])
        return Held(self.name, index.reshape(1, *(sizes[role] for role in self.roles)))

    def _all_roles(self) -> str:
        return self.roles + "".join(role for role in "CHW" if role not in self.roles)


class Net:
    """A float graph of bakenn, grown operator by operator."""

    def __init__(self, thrifty: bool) -> None:
        #: whether to give up where only much larger weights would help
        self.thrifty = thrifty
        self.model: Any = import_module("bakenn.frontends.torch_export.model")
        self.ops: list[Any] = []
        self.values: dict[str, Any] = {}
        self.constants: dict[str, Floats] = {}
        #: scale and shift of each channel, of the values that were made so
        self.affines: dict[str, tuple[str, NDArray[Any], NDArray[Any]]] = {}
        self._makers: dict[str, Any] = {}
        self._views: dict[tuple[str, tuple[int, ...]], str] = {}
        self._names: set[str] = set()

    # ---- values

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value, channels first."""
        found: tuple[int, ...] = self.values[name].shape
        return found

    def size(self, name: str) -> int:
        """How many numbers it has."""
        return math.prod(self.shape(name))

    def board_shape(self, name: str) -> tuple[int, int, int]:
        """As height, width, channels."""
        _, channels, *area = self.shape(name)
        height, width = area or (1, 1)
        return height, width, channels

    def maker(self, name: str) -> Any:
        """The operation that made a value; ``None`` for the input."""
        return self._makers.get(name)

    def add_input(self, name: str, shape: tuple[int, ...]) -> str:
        """The graph's input."""
        self._add_value(name, shape, self.model.FloatValueKind.INPUT)
        return name

    def add_constant(self, name: str, numbers: NDArray[Any], source: str | None = None) -> str:
        """A tensor of known numbers; ``source`` is its name in the module."""
        name = self._unique(name)
        array = np.ascontiguousarray(numbers, dtype=np.float32)
        if not np.isfinite(array).all():
            raise Refusal(
                f"{source or name} holds numbers that are not finite: load other weights, and use "
                "a large number where infinity is meant"
            )
        self._add_value(name, array.shape, self.model.FloatValueKind.CONSTANT, source)
        self.constants[name] = array
        return name

    def add(self, kind: str | type, label: str, shape: tuple[int, ...], *args: Any) -> str:
        """An operation after its name: its inputs; ``...`` is its output. Returns the output."""
        name = self._unique(label)
        made = getattr(self.model, kind) if isinstance(kind, str) else kind
        op = made(name, *(name if arg is ... else arg for arg in args))
        self._add_value(name, shape, self.model.FloatValueKind.ACTIVATION)
        self.ops.append(op)
        self._makers[name] = op
        return name

    def again(self, op: Any, **changes: Any) -> str:
        """``op`` once more with other inputs; returns its output."""
        name = self._unique(op.name)
        self._add_value(name, self.shape(op.output), self.model.FloatValueKind.ACTIVATION)
        made = replace(op, name=name, output=name, **changes)
        self.ops.append(made)
        self._makers[name] = made
        return name

    def view(self, name: str, shape: tuple[int, ...]) -> str:
        """The same memory as a value of another shape."""
        if self.shape(name) == shape:
            return name
        maker = self.maker(name)
        kind = operators().View
        if isinstance(maker, kind) and self.shape(maker.input) == shape:
            return str(maker.input)
        if (name, shape) not in self._views:
            view = self.add(kind, f"{name}_view", shape, name, ..., 0, 0, 1)
            self._views[name, shape] = view
        return self._views[name, shape]

    def table(self, name: str, label: str, function: Pointwise) -> str:
        """A function of each number; one after another becomes one."""
        kind, maker, functions = operators().Table, self.maker(name), (function,)
        if isinstance(maker, kind):
            name, functions = maker.input, (*maker.functions, function)
        return self.add(kind, label, self.shape(name), name, ..., functions)

    def graph(self, name: str, outputs: Sequence[str], source: str) -> Any:
        """The finished graph, without what nothing depends on."""
        needed, kept = {*outputs}, list[Any]()
        for op in reversed(self.ops):
            if op.output in needed:
                kept.append(op)
                needed.update(op.inputs)
        return self.model.FloatGraph(
            name=name,
            values={key: value for key, value in self.values.items() if key in needed | {source}},
            constants={key: array for key, array in self.constants.items() if key in needed},
            ops=tuple(reversed(kept)),
            inputs=(source,),
            outputs=tuple(outputs),
        )

    def _add_value(
        self, name: str, shape: tuple[int, ...], kind: Any, source: str | None = None
    ) -> None:
        layouts = self.model.FloatLayout
        layout = {1: layouts.C, 2: layouts.NC, 3: layouts.NCL, 4: layouts.NCHW}[len(shape)]
        dtype = self.model.FloatDType.FLOAT32
        self.values[name] = self.model.FloatValue(name, shape, dtype, layout, kind, source)
        self._names.add(name)

    def _unique(self, base: str) -> str:
        name = next(n for n in self._numbered(base) if n not in self._names)
        self._names.add(name)
        return name

    @staticmethod
    def _numbered(base: str) -> Iterator[str]:
        yield base
        yield from (f"{base}_{count}" for count in itertools.count(1))

    # ---- tensors

    def vector(self, held: Held) -> Held:
        """As a vector value with all of the tensor's numbers, in whatever order."""
        held = self.whole(held)
        return Held(self.view(held.name, (1, held.index.size)), held.index)

    def map(self, held: Held, roles: Sequence[str] = ()) -> Map:
        """As channels, height and width; ``WrongLayout`` if it does not lie like that."""
        held = self.whole(held)
        found = self._as_map(held, roles) or self._from_vector(held)
        if found is None or (roles and found.roles not in roles):
            raise WrongLayout("")
        return found

    def in_place(self, held: Held) -> Map | None:
        """As ``map`` if its numbers can stay where they are."""
        return self._as_map(held, ())

    def _from_vector(self, held: Held) -> Map | None:
        """As a map, channels first, if what made it as a vector can be moved."""
        tensor = held.index[0] if held.index.shape[:1] == (1,) else None
        if tensor is None or tensor.ndim not in (2, 3):
            return None
        roles = "CHW" if tensor.ndim == 3 else "CW"
        index = _by_roles(tensor, roles)
        places = index.transpose(1, 2, 0).ravel()
        name = self._rearranged(self.view(held.name, (1, len(places))), places)
        if name is None:
            return None
        shape = (1, *index.shape)
        channels, height, width = index.shape
        return Map(self.view(name, shape), channels, height, width, roles, np.arange(channels))

    def whole(self, held: Held) -> Held:
        """In a value that has the tensor's numbers and no others: the rest is cut off."""
        size = self.size(held.name)
        if held.index.size == size and len(np.unique(held.index)) == size:
            return held
        return self._picked(held)

    def ordered(self, found: Map) -> Map:
        """With the board's channels in the tensor's order: rows of weights change places."""
        if found.ordered:
            return found
        name = self._rearranged(found.name, found.places)
        if name is None:
            name = self._channels(found.name, found.places)
        return replace(found, name=name, places=np.arange(found.channels))

    def _as_map(self, held: Held, wanted: Sequence[str]) -> Map | None:
        if held.index.shape[:1] != (1,):
            return None
        tensor = held.index[0]
        for roles in wanted or _ROLES.get(tensor.ndim, []):
            if len(roles) == tensor.ndim and (found := self._with_roles(held.name, tensor, roles)):
                return found
        return None

    def _with_roles(self, name: str, tensor: Index, roles: str) -> Map | None:
        """If these are the axes: channels next to each other, all at one place."""
        index = _by_roles(tensor, roles)
        channels, height, width = index.shape
        places = index[:, 0, 0]
        row = channels * np.arange(height * width).reshape(height, width)
        if not (index == places[:, None, None] + row).all():
            return None
        value = self.view(name, (1, channels, height, width))
        return Map(value, channels, height, width, roles, places)

    def _picked(self, held: Held) -> Held:
        """A value made of the picked rows, columns and channels of another."""
        height, width, channels = self.board_shape(held.name)
        tensor = held.index[0] if held.index.shape[:1] == (1,) else held.index
        tensor = tensor.reshape(tensor.shape or (1,))
        for roles in _ROLES.get(tensor.ndim, []):
            index = _by_roles(tensor, roles)
            across, channel = index // channels, index % channels
            down, across = across // width, across % width
            if not (
                (channel == channel[:, :1, :1]).all()
                and (down == down[:1, :, :1]).all()
                and (across == across[:1, :1, :]).all()
            ):
                continue
            name = self.view(held.name, (1, channels, height, width))
            for axis, chosen in ((2, down[0, :, 0]), (3, across[0, 0]), (1, channel[:, 0, 0])):
                name = self._taken(name, axis, chosen)
            _, *sizes = self.shape(name)
            found = Map(name, sizes[0], sizes[1], sizes[2], roles, np.arange(sizes[0]))
            return Held(name, found.held().index.reshape(held.index.shape))
        raise WrongLayout("")

    def _taken(self, name: str, axis: int, chosen: Index) -> str:
        """The numbers at ``chosen`` places along one axis: slices, joined if there are several."""
        if (size := self.shape(name)[axis]) == len(chosen) and (chosen == np.arange(size)).all():
            return name
        runs = _runs(chosen)
        if axis == 1 and len(runs) > 1:
            return self._channels(name, chosen)
        if len(runs) > _PIECES:
            raise WrongLayout("")
        parts = [self.slice(name, axis, *run) for run in runs]
        return self.concat(parts, axis) if len(parts) > 1 else parts[0]

    def slice(self, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """Part of a value."""
        shape = list(self.shape(name))
        if (start, step) == (0, 1) and stop == shape[axis]:
            return name
        shape[axis] = len(range(start, stop, step))
        return self.add(
            "FloatSliceOp", f"{name}_slice", tuple(shape), name, ..., axis, start, stop, step
        )

    def concat(self, names: Sequence[str], axis: int, label: str = "") -> str:
        """Values one after another."""
        shape = list(self.shape(names[0]))
        shape[axis] = sum(self.shape(name)[axis] for name in names)
        label = label or f"{names[0]}_cat"
        return self.add("FloatConcatOp", label, tuple(shape), tuple(names), ..., axis)

    def _channels(self, name: str, places: Index) -> str:
        """A value whose channels are those at ``places``, by a convolution with ones."""
        _, channels, height, width = self.shape(name)
        weight = np.zeros((len(places), channels, 1, 1), dtype=np.float32)
        weight[np.arange(len(places)), places] = 1
        constant = self.add_constant(f"{name}_order", weight)
        geometry = (1, 1), (0, 0, 0, 0), (1, 1)
        shape = (1, len(places), height, width)
        return self.add(
            "FloatConv2DOp", f"{name}_ordered", shape, name, constant, None, ..., *geometry
        )

    def _rearranged(self, name: str, places: Index) -> str | None:
        """The value with other places for its channels, by moving its maker's weights.

        ``None`` if what made it has no weights to move.
        """
        op, model = self.maker(name), self.model
        if isinstance(op, model.FloatLinearOp | model.FloatConv2DOp):
            if getattr(op, "groups", 1) != 1 or len(places) != self.shape(name)[1]:
                return None
            moved = self._rows(op.weight, places), op.bias and self._rows(op.bias, places)
            return self.again(op, weight=moved[0], bias=moved[1])
        if type(op) in (model.FloatReLUOp, model.FloatReLU6Op, operators().Table):
            before = self._rearranged(op.input, places)
            return before and self.again(op, input=before)
        return None

    def _rows(self, constant: str, places: Index) -> str:
        value = self.values[constant]
        return self.add_constant(constant, self.constants[constant][places], value.source_name)

    def reordered_vector(self, held: Held) -> Held | None:
        """The tensor as a vector in its own order, if what made it can be moved."""
        name = self._rearranged(self.vector(held).name, held.index.ravel())
        if name is None:
            return None
        return Held(name, np.arange(held.index.size).reshape(held.index.shape))


def _by_roles(tensor: Index, roles: str) -> Index:
    """As channels, height, width."""
    missing = [role for role in "CHW" if role not in roles]
    full = tensor.reshape(*tensor.shape, *(1 for _ in missing))
    order = [*roles, *missing]
    return full.transpose([order.index(role) for role in "CHW"])


def _runs(chosen: Index) -> list[tuple[int, int, int]]:
    """``chosen`` as slices: start, stop and step of each, one of them if possible."""
    steps = np.diff(chosen)
    if len(steps) and steps[0] > 0 and (steps == steps[0]).all():
        return [(int(chosen[0]), int(chosen[-1]) + 1, int(steps[0]))]
    pieces = np.split(chosen, np.flatnonzero(steps != 1) + 1)
    return [(int(piece[0]), int(piece[-1]) + 1, 1) for piece in pieces]
