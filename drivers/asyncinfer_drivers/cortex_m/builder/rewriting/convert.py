"""From a module to the compiler's float graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer_drivers.cortex_m.builder.rewriting import arithmetic, layers, views
from asyncinfer_drivers.cortex_m.builder.rewriting.call import RULES, Call
from asyncinfer_drivers.cortex_m.builder.rewriting.custom import Pointwise, operators
from asyncinfer_drivers.cortex_m.builder.rewriting.names import operator_name
from asyncinfer_drivers.cortex_m.builder.rewriting.net import Held, Index, Net
from asyncinfer_drivers.cortex_m.builder.rewriting.program import Program
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import WrongLayout, refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import fx

__all__ = ("Converted", "Port", "convert")

del layers, views  # imported for the rules in them

#: operators that only check something
_CHECKS = ("aten._assert_tensor_metadata.default", "aten._assert_async.msg")
#: most channels of an output that has to be brought into the order of a flat tensor
_MOST_CHANNELS = 64
#: most channels of an output that a convolution brings into order
_MOST_ORDERED = 256


@dataclass(frozen=True)
class Port:
    """One tensor that goes to the board or comes from it."""

    #: the value of the graph
    name: str
    #: of a sample, as torch has it
    shape: tuple[int, ...]
    #: the board's axes in this order are the tensor's: ``board = tensor.transpose(axes)``
    axes: tuple[int, ...]

    @property
    def board_shape(self) -> tuple[int, ...]:
        """As it lies on the board."""
        return tuple(self.shape[axis] for axis in self.axes)

    def to_board(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Of ``[n, *shape]``: as the board has them."""
        return samples.transpose(0, *(axis + 1 for axis in self.axes))

    def from_board(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Back again."""
        return samples.transpose(0, *(int(axis) + 1 for axis in np.argsort(self.axes)))


@dataclass(frozen=True)
class Converted:
    """A float graph, and how its input and outputs lie."""

    graph: Any
    input: Port
    #: one for each result, in the order of the board's answer
    outputs: tuple[Port, ...]


def convert(program: Program, name: str) -> Converted:
    """Express all that the results depend on; raises ``Refusal``."""
    _check(program)
    misplaced = list[WrongLayout]()
    for thrifty in (True, False):
        for axes in _layouts(tuple(program.input.meta["val"].shape[1:])):
            try:
                return _Conversion(program, axes, thrifty).run(name)
            except WrongLayout as error:
                misplaced.append(error)
    raise misplaced[0]


def _layouts(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """How an input may lie on the board: channels last as a rule, else as it is, else anyhow."""
    rank = len(shape)
    last = (*range(1, rank), 0) if rank > 1 else (0,)
    tried = list[tuple[int, ...]]()
    for axes in (last, tuple(range(rank)), *itertools.permutations(range(rank))):
        if axes not in tried and len(tried) < 6:
            tried.append(axes)
            yield axes


def _check(program: Program) -> None:
    """Refuse the first operator that is not known, before anything else."""
    import torch

    needed = _needed(program)
    for node in program.nodes:
        if node.op != "call_function" or node not in needed:
            continue
        name = operator_name(node)
        tags: Any = getattr(node.target, "tags", ())
        if name in RULES or name in _CHECKS or name == "getitem" or torch.Tag.pointwise in tags:
            continue
        if needed[node]:  # made of known numbers alone: they are computed here
            raise refuse(node)


def _needed(program: Program) -> Mapping[fx.Node, bool]:
    """What the results depend on, and whether it depends on the input."""
    wanted = set[Any]()
    todo = [result.node for result in program.results]
    while todo:
        node = todo.pop()
        if node not in wanted:
            wanted.add(node)
            todo.extend(node.all_input_nodes)
    depends = dict[Any, bool]()
    for node in program.nodes:
        given = any(depends.get(before, False) for before in node.all_input_nodes)
        depends[node] = node is program.input or given
    return {node: depends[node] for node in program.nodes if node in wanted}


class _Conversion:
    def __init__(self, program: Program, axes: tuple[int, ...], thrifty: bool) -> None:
        self._program, self._net = program, Net(thrifty)
        self._env: dict[Any, Any] = {}
        self._needed = _needed(program)
        self._input = self._place_input(axes)

    def _place_input(self, axes: tuple[int, ...]) -> Port:
        node = self._program.input
        shape = tuple(node.meta["val"].shape[1:])
        board = [shape[axis] for axis in axes]
        index = np.arange(math.prod(shape)).reshape(board).transpose(np.argsort(axes))
        if len(board) == 1 or len(board) > 3:
            value: tuple[int, ...] = (1, math.prod(board))
        else:
            *area, channels = board
            value = (1, channels, *(area if len(area) == 2 else (1, *area)))
        name = self._net.add_input(node.name, value)
        self._env[node] = Held(name, index[None])
        return Port(name, shape, axes)

    def run(self, name: str) -> Converted:
        for node in self._program.nodes:
            if node in self._needed and node is not self._program.input:
                self._env[node] = self._value(node)
        held = [self._env[result.node] for result in self._program.results]
        pairs = zip(held, self._program.results, strict=True)
        ports = [self._port(one, result.node) for one, result in pairs]
        parts = [part for parts, _ in ports for part in parts]
        last = self._end(parts)
        graph = self._net.graph(name, [last], self._input.name)
        return Converted(graph, self._input, tuple(port for _, port in ports))

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._program.constants[node.name]
        if node.op == "get_attr":
            return getattr(self._program.exported.graph_module, str(node.target))
        given = self._arguments(node)
        if operator_name(node) == "getitem":
            return given["self"][given["index"]]
        call = Call(node, given)
        if operator_name(node) in _CHECKS:
            return None
        if not self._needed[node]:
            target: Any = node.target
            return target(**given)
        try:
            made = self._made(call)
        except WrongLayout as error:
            if str(error):
                raise
            raise WrongLayout(str(_misplaced(node))) from None
        if made is None:
            raise refuse(node)
        return made

    def _made(self, call: Call) -> Any:
        if made := RULES.get(operator_name(call.node)):
            return made(self._net, call)
        return arithmetic.pointwise(self._net, call)

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        from torch import fx

        args = fx.map_arg(node.args, lambda before: self._env[before])
        if operator_name(node) == "getitem":
            return {"self": args[0], "index": args[1]}
        options = fx.map_arg(node.kwargs, lambda before: self._env[before])
        schema: Any = node.target._schema  # type: ignore[union-attr]
        return {
            argument.name: args[at]
            if at < len(args)
            else options.get(argument.name, argument.default_value)
            for at, argument in enumerate(schema.arguments)
        }

    # ---- the results

    def _port(self, held: Any, node: fx.Node) -> tuple[list[str], Port]:
        """The values that follow one another in the answer, and how torch sees them."""
        if not isinstance(held, Held):
            raise refuse(node, "does not depend on the input", "leave it out of the results")
        try:
            held = self._net.whole(held)
        except WrongLayout:
            raise _unordered(node) from None
        shape = held.index.shape[1:] if held.index.shape[:1] == (1,) else held.index.shape
        index = held.index.reshape(shape)
        if (axes := _axes(index)) is None and (moved := self._net.reordered_vector(held)):
            held, axes = moved, tuple(range(len(shape)))
        parts = [held.name]
        if axes is None and (channels := self._channels_of_flat(held)):
            parts, axes = channels, tuple(range(len(shape)))
        elif axes is None:
            held = self._in_order(held, node)
            parts, axes = [held.name], _axes(held.index.reshape(shape))
        if axes is None:
            raise _unordered(node)
        return parts, Port(held.name, shape, axes)

    def _channels_of_flat(self, held: Held) -> list[str]:
        """A flat tensor of a map: its channels one after another; none if it is something else."""
        height, width, channels = self._net.board_shape(held.name)
        flat = np.arange(held.index.size).reshape(height, width, channels).transpose(2, 0, 1)
        if channels > _MOST_CHANNELS or not np.array_equal(flat.ravel(), held.index.ravel()):
            return []
        return [self._net.slice(held.name, 1, at, at + 1) for at in range(channels)]

    def _in_order(self, held: Held, node: fx.Node) -> Held:
        """With its channels in the order of the tensor's."""
        found = self._net.in_place(held)
        if found is None or found.channels > _MOST_ORDERED:
            raise _unordered(node)
        return self._net.ordered(found).held()

    def _end(self, parts: Sequence[str]) -> str:
        """One value with all results."""
        if len(parts) == 1:
            if self._net.maker(parts[0]) is not None:
                return parts[0]
            return self._net.table(parts[0], "results", Pointwise("mul.Scalar", (..., 1.0)))
        size = sum(self._net.size(part) for part in parts)
        return self._net.add(operators().Join, "results", (1, size), tuple(parts), ..., 1)


def _axes(index: Index) -> tuple[int, ...] | None:
    """The order of the tensor's axes on the board, if it lies there like that."""
    rank = index.ndim
    last = (*range(1, rank), 0) if rank > 1 else tuple(range(rank))
    for axes in (last, *itertools.permutations(range(rank))):
        if np.array_equal(index.transpose(axes).ravel(), np.arange(index.size)):
            return axes
    return None


def _unordered(node: fx.Node) -> WrongLayout:
    text = refuse(
        node,
        "has another order as a result than the board can give",
        "return the tensor as it was before it was reshaped",
    )
    return WrongLayout(str(text))


def _misplaced(node: fx.Node) -> Exception:
    return refuse(
        node,
        "needs its numbers in another order than they have on the board",
        "permute and reshape less in the middle of the model",
    )
