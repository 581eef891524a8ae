"""Three operators that the compiler lacks, made of what its integer graph has.

- **A table**: any function of one number. In 8 bits there are 256 inputs, so all are listed.
- **A view**: the same bytes as another shape.
- **A join**: several results behind one another, each with its own scale.

They derive from operators of bakenn that its quantiser handles alike. ``factories`` makes their
integer counterparts where the quantiser would make those of their parents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncinfer.errors import ConfigError

__all__ = ("Pointwise", "evaluate_custom", "factories", "is_custom", "operators")

Floats = NDArray[np.float32]

#: the largest number of 8 bits
_MOST = 127


@dataclass(frozen=True)
class Pointwise:
    """An operator of torch applied to one tensor, its other arguments known numbers."""

    #: as ``torch.ops.aten`` has it: ``tanh.default``
    name: str
    #: ``...`` in the place of the tensor
    args: tuple[Any, ...] = (...,)
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """The function of each of ``numbers``, in doubles."""
        import torch

        operator: Any = torch.ops.aten
        for part in self.name.split("."):
            operator = getattr(operator, part)
        tensor = torch.from_numpy(np.ascontiguousarray(numbers, np.float64))
        args = [tensor if arg is ... else arg for arg in self.args]
        found: NDArray[Any] = operator(*args, **dict(self.options)).numpy()
        return found


@cache
def operators() -> Any:
    """The classes ``Table``, ``View`` and ``Join``; made late, as bakenn is an extra."""
    floats: Any = import_module("bakenn.frontends.torch_export.model")
    integers: Any = import_module("bakenn.ir.ops.activation")
    lower: Any = import_module("bakenn.plan.lower")
    import_module("bakenn.plan.lowering")

    @dataclass(frozen=True)
    class Table(floats.FloatSiLUOp):  # type: ignore[misc]
        """The functions one after another, of each number."""

        functions: tuple[Pointwise, ...] = ()

    @dataclass(frozen=True)
    class View(floats.FloatSliceOp):  # type: ignore[misc]
        """The board's bytes as they are, in another shape."""

    @dataclass(frozen=True)
    class Join(floats.FloatConcatOp):  # type: ignore[misc]
        """The board's bytes of all inputs behind one another; each keeps its scale."""

    @dataclass(frozen=True)
    class TableOp(integers.SiLUOp):  # type: ignore[misc]
        """In integers; without functions a number stays the same and gets another scale."""

        functions: tuple[Pointwise, ...] = ()

    lower.lower_op.register(TableOp)(_lower_table)
    return SimpleNamespace(Table=Table, View=View, Join=Join, TableOp=TableOp)


def is_custom(op: object) -> bool:
    """Whether ``op`` is one of the three."""
    kinds = operators()
    return isinstance(op, kinds.Table | kinds.View | kinds.Join)


def evaluate_custom(op: Any, values: Mapping[str, Floats], shape: tuple[int, ...]) -> Floats:
    """What ``op`` computes in float, channels first as all of bakenn's float values."""
    kinds = operators()
    if isinstance(op, kinds.Table):
        numbers: NDArray[Any] = values[op.input]
        for function in op.functions:
            numbers = function(numbers)
        if not np.isfinite(numbers).all():
            raise ConfigError(f"{op.name}: calibration inputs make numbers that are not finite")
        return np.ascontiguousarray(numbers, dtype=np.float32)
    parts = [_board(values[name]).ravel() for name in op.inputs]
    return _float(np.concatenate(parts), shape)


def _board(values: Floats) -> Floats:
    """Channels last, as on the board."""
    return np.moveaxis(values, 1, -1) if values.ndim > 2 else values


def _float(numbers: Floats, shape: tuple[int, ...]) -> Floats:
    """The board's ``numbers`` as a float value of this shape, channels first."""
    if len(shape) < 3:
        return numbers.reshape(shape)
    last = numbers.reshape(shape[0], *shape[2:], shape[1])
    return np.ascontiguousarray(np.moveaxis(last, -1, 1))


# ---- in integers


@dataclass(frozen=True)
class _Placeholder:
    """A join in a graph that is not finished."""

    name: str
    inputs: tuple[str, ...]
    output: str


def factories(graph: Any) -> Mapping[str, Callable[..., Any]]:
    """What bakenn's quantiser calls in the place of its own names, for the operators here."""
    kinds = operators()
    shape: Any = import_module("bakenn.ir.ops.shape")
    activation: Any = import_module("bakenn.ir.ops.activation")
    legalize = import_module("bakenn.passes").legalize_graph
    own = {op.name: op for op in graph.ops if is_custom(op)}

    def table(name: str, source: str, output: str) -> Any:
        if name in own:
            return kinds.TableOp(name, source, output, own[name].functions)
        return activation.SiLUOp(name, source, output)

    def view(name: str, source: str, output: str, *rest: int) -> Any:
        if name in own:
            return shape.ReshapeOp(name, source, output)
        return shape.SliceOp(name, source, output, *rest)

    def join(name: str, sources: tuple[str, ...], output: str, axis: int) -> Any:
        if name in own:
            return _Placeholder(name, sources, output)
        return shape.ConcatenateOp(name, sources, output, axis)

    def finished(raw: Any) -> Any:
        return legalize(_one_scale(_joined(raw)))

    return {
        "SiLUOp": table,
        "SliceOp": view,
        "ConcatenateOp": join,
        "legalize_graph": finished,
    }


def _joined(raw: Any) -> Any:
    """The graph with joins made of tables, which change no number, views and a concatenation."""
    shape: Any = import_module("bakenn.ir.ops.shape")
    values, ops = dict(raw.values), list[Any]()
    for op in raw.ops:
        if not isinstance(op, _Placeholder):
            ops.append(op)
            continue
        scale = values[op.output].qparams
        flat = [
            _flattened(f"{op.name}.{at}", name, scale, values, ops)
            for at, name in enumerate(op.inputs)
        ]
        ops.append(shape.ConcatenateOp(op.name, tuple(flat), op.output, 1))
    return replace(raw, values=values, ops=tuple(ops))


def _flattened(label: str, name: str, scale: Any, values: dict[str, Any], ops: list[Any]) -> str:
    """The value ``name`` as a vector that is said to have this scale; returns its name."""
    shape: Any = import_module("bakenn.ir.ops.shape")
    types: Any = import_module("bakenn.ir.types")
    kind = values[name]
    if kind.qparams != scale:
        values[f"{label}.codes"] = replace(kind, qparams=scale)
        ops.append(operators().TableOp(f"{label}.codes", name, f"{label}.codes"))
        name = f"{label}.codes"
    if kind.layout is not types.Layout.NC:
        values[f"{label}.flat"] = types.TensorType(
            (1, kind.numel), kind.dtype, types.Layout.NC, scale
        )
        ops.append(shape.ReshapeOp(f"{label}.flat", name, f"{label}.flat"))
        name = f"{label}.flat"
    return name


def _one_scale(graph: Any) -> Any:
    """Give what is concatenated, and goes nowhere else, the scale of the whole.

    Else each part would be rounded twice: to a scale of its own, and then to that of the whole.
    """
    shape: Any = import_module("bakenn.ir.ops.shape")
    makers = {name: op for op in graph.ops for name in op.outputs}
    readers = Counter(name for op in graph.ops for name in op.inputs)
    values, changed = dict(graph.values), dict[str, Any]()
    for op in graph.ops:
        for name in op.inputs if isinstance(op, shape.ConcatenateOp) else ():
            chain = _back_to_weights(name, makers, readers)
            if chain and _has_weights(graph.constants[chain[-1].weight]):
                for link in chain:
                    values[link.output] = replace(
                        values[link.output], qparams=values[op.output].qparams
                    )
                    changed[link.name] = _clamped(link, graph.values[link.output].qparams, values)
    ops = tuple(changed.get(op.name, op) for op in graph.ops)
    return replace(graph, values=values, ops=ops)


def _back_to_weights(name: str, makers: Mapping[str, Any], readers: Mapping[str, int]) -> list[Any]:
    """The operations from ``name`` back to a convolution if nothing else reads on the way."""
    conv: Any = import_module("bakenn.ir.ops.conv")
    elementwise: Any = import_module("bakenn.ir.ops.elementwise")
    chain = list[Any]()
    while readers[name] == 1 and name in makers:
        chain.append(makers[name])
        if isinstance(chain[-1], conv.Conv2DOp):
            return chain
        if not isinstance(chain[-1], elementwise.ClampOp):
            break
        name = chain[-1].input
    return []


def _clamped(op: Any, before: Any, values: Mapping[str, Any]) -> Any:
    """A ReLU with its ends on the new scale of its output."""
    if not hasattr(op, "activation_max") or not hasattr(op, "input") or hasattr(op, "weight"):
        return op
    ptq: Any = import_module("bakenn.quantization.ptq_graph")
    now, top = values[op.output].qparams, op.activation_max
    if top != _MOST:
        top = ptq._quantize_code(before.scale * (top - before.zero_point), now)
    return replace(op, activation_min=now.zero_point, activation_max=top)


def _has_weights(weight: NDArray[Any]) -> bool:
    """Whether each channel has one; the others' numbers were made for their own scale."""
    return bool(np.abs(weight.reshape(len(weight), -1)).max(axis=1).all())


def _lower_table(op: Any, graph: Any) -> Any:
    steps: Any = import_module("bakenn.plan.steps.activation")
    source, target = graph.values[op.input].qparams, graph.values[op.output].qparams
    codes = np.arange(-128, 128)
    if op.functions:
        codes = _codes(op.functions, source, target)
    # bakenn knows four names of tables; this one stands for all others
    return steps.LUTActivationStep(op.name, op.input, op.output, "silu", tuple(map(int, codes)))


def _codes(functions: Sequence[Pointwise], source: Any, target: Any) -> NDArray[Any]:
    """The table: for each number of the input the nearest of the output."""
    numbers: NDArray[Any] = source.scale * (np.arange(-128, 128.0) - source.zero_point)
    for function in functions:
        numbers = function(numbers)
    scaled = np.nan_to_num(numbers / target.scale, nan=0.0, posinf=1e6, neginf=-1e6)
    rounded = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled) + target.zero_point
    codes: NDArray[Any] = rounded.clip(-128, 127).astype(np.int64)
    return codes
