"""Rules for what is done number by number: activations, scales and shifts, sums and products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncinfer_drivers.cortex_m.builder.rewriting.call import Call, rule
from asyncinfer_drivers.cortex_m.builder.rewriting.custom import Pointwise
from asyncinfer_drivers.cortex_m.builder.rewriting.net import Held, Map, Net
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import WrongLayout

__all__ = ("affine", "pointwise")

Floats = NDArray[np.float64]

#: activations that bakenn has
_OWN = {
    "aten.relu.default": "FloatReLUOp",
    "aten.relu6.default": "FloatReLU6Op",
    "aten.sigmoid.default": "FloatSigmoidOp",
    "aten.silu.default": "FloatSiLUOp",
    "aten.hardswish.default": "FloatHardSwishOp",
    "aten.hardsigmoid.default": "FloatHardSigmoidOp",
}
#: ranges that are a ReLU
_RANGES = {(0.0, 6.0): "FloatReLU6Op", (0.0, None): "FloatReLUOp"}


#: functions of one number that torch does not mark so
_POINTWISE = ("aten.log_sigmoid.default",)

# ---- functions of one number


def _name(call: Call) -> str:
    return str(call.node.target)


def pointwise(net: Net, call: Call) -> Held | None:
    """Any operator that torch says to go number by number, of one tensor: a table of 256."""
    import torch

    tags: Any = getattr(call.node.target, "tags", ())
    if len(call.helds) != 1 or not (torch.Tag.pointwise in tags or _name(call) in _POINTWISE):
        return None
    held = call.helds[0]
    if call.shape != held.index.shape or torch.Tag.nondeterministic_seeded in tags:
        return None
    if call.node.meta["val"].dtype is not torch.float32:
        return None
    args = tuple(_number(value) for value in call.given.values())
    if any(isinstance(arg, torch.Tensor) for arg in args):
        return None
    name = str(call.node.target).removeprefix("aten.")
    schema: Any = call.node.target._schema  # type: ignore[union-attr]
    named = {arg.name for arg in schema.arguments if arg.kwarg_only}
    plain = tuple(arg for key, arg in zip(call.given, args, strict=True) if key not in named)
    options = tuple((key, call[key]) for key in call.given if key in named)
    return Held(net.table(held.name, call.label, Pointwise(name, plain, options)), held.index)


def _number(value: Any) -> Any:
    """``...`` for the tensor; a tensor of one known number becomes the number."""
    import torch

    if isinstance(value, Held):
        return ...
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return value


@rule(*(name.removeprefix("aten.") for name in _OWN))
def _activation(net: Net, call: Call) -> Held:
    return _apply(net, call, _OWN[str(call.node.target)])


def _apply(net: Net, call: Call, kind: str) -> Held:
    held: Held = call["self"]
    maker = net.maker(held.name)
    if kind in _RANGES.values() and isinstance(maker, net.model.FloatConcatOp):
        parts = [net.maker(name) for name in maker.inputs]
        if all(isinstance(part, net.model.FloatConv2DOp) for part in parts) and call.alone:
            # before they are joined it costs nothing: the convolutions do it
            made = [net.add(kind, call.label, net.shape(p.output), p.output, ...) for p in parts]
            return Held(net.concat(made, maker.axis, call.label), held.index)
    return Held(net.add(kind, call.label, net.shape(held.name), held.name, ...), held.index)


@rule("hardtanh.default", "clamp.default", "clamp_min.default")
def _clamp(net: Net, call: Call) -> Held | None:
    low, high = (
        (call["min_val"], call["max_val"])
        if "hardtanh" in str(call.node.target)
        else (call["min"], call["max"])
    )
    if kind := _RANGES.get((low, high)):
        return _apply(net, call, kind)
    return pointwise(net, call)


@rule("log_sigmoid.default")
def _log_sigmoid(net: Net, call: Call) -> Held | None:
    return pointwise(net, call)


@rule("rrelu.default")
def _rrelu(net: Net, call: Call) -> Held:
    """Without training its slope is the middle one."""
    middle = (call["lower"] + call["upper"]) / 2
    slope = Pointwise("leaky_relu.default", (..., middle))
    return Held(net.table(call["self"].name, call.label, slope), call["self"].index)


@rule("prelu.default")
def _prelu(net: Net, call: Call) -> Held:
    """With several slopes: what is positive, and what is negative times its channel's slope."""
    held, slopes = call["self"], call.weights("weight")
    if slopes.size == 1 or (slopes == slopes[0]).all():
        slope = Pointwise("leaky_relu.default", (..., float(slopes[0])))
        return Held(net.table(held.name, call.label, slope), held.index)
    shape = net.shape(held.name)
    positive = net.add("FloatReLUOp", f"{call.label}_positive", shape, held.name, ...)
    least = Pointwise("clamp_max.default", (..., 0.0))
    negative = net.table(held.name, f"{call.label}_negative", least)
    axes = (len(slopes), *(1 for _ in held.index.shape[2:]))
    scaled = affine(net, call, Held(negative, held.index), slopes.reshape(axes), 0)
    return _combined(net, call, "FloatAddOp", Held(positive, held.index), scaled)


# ---- known numbers


def affine(net: Net, call: Call, held: Held, scale: Any, shift: Any) -> Held:
    """``held * scale + shift``, in the weights before or after it where that is possible."""
    held = net.whole(held)
    scale, shift = _on_board(held, scale), _on_board(held, shift)
    factors = _by_channel(net, held, scale, shift)
    if call.alone and factors and (name := _in_weights(net, held.name, *factors)):
        return Held(name, held.index)
    held = _as_map_if_possible(net, held, scale, shift)
    if (factors := _by_channel(net, held, scale, shift)) is None:
        return _number_by_number(net, call, held, scale, shift)
    if all((each == each[0]).all() for each in factors):
        return Held(_uniform(net, call, held.name, *factors), held.index)
    return Held(_per_channel(net, call, held.name, *factors), held.index)


def _by_channel(net: Net, held: Held, scale: Floats, shift: Floats) -> tuple[Floats, Floats] | None:
    """Scale and shift of each of the board's channels, if they are the same at all places."""
    channels = net.board_shape(held.name)[2]
    rows = scale.reshape(-1, channels), shift.reshape(-1, channels)
    if not all((each == each[:1]).all() for each in rows):
        return None
    return rows[0][0], rows[1][0]


def _on_board(held: Held, given: Any) -> Floats:
    """Known numbers that are broadcast to the tensor, in the order of the board's memory."""
    spread = np.broadcast_to(np.asarray(given, np.float64), held.index.shape)
    numbers = np.empty(held.index.size)
    numbers[held.index.ravel()] = spread.ravel()
    return numbers


def _as_map_if_possible(net: Net, held: Held, scale: Floats, shift: Floats) -> Held:
    """A view of it whose channels are the tensor's, unless all are treated alike."""
    if (scale == scale[0]).all() and (shift == shift[0]).all():
        return held
    found = net.in_place(held)
    return held if found is None else Held(found.name, held.index)


def _in_weights(net: Net, name: str, scale: Floats, shift: Floats) -> str | None:
    """In those of the convolution or linear layer that made the value."""
    op, model = net.maker(name), net.model
    kinds = (
        model.FloatConv2DOp,
        model.FloatDepthwiseConv2DOp,
        model.FloatLinearOp,
        model.FloatConvTranspose2DOp,
    )
    if not isinstance(op, kinds):
        return None
    weight = net.constants[op.weight].astype(np.float64)
    bias = np.zeros(len(scale)) if op.bias is None else net.constants[op.bias].astype(np.float64)
    if isinstance(op, model.FloatConvTranspose2DOp):
        inputs, outputs = weight.shape[:2]
        grouped = weight.reshape(op.groups, inputs // op.groups, outputs, *weight.shape[2:])
        weight = (grouped * scale.reshape(op.groups, 1, outputs, 1, 1)).reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    bias = bias * scale + shift
    source = net.values[op.weight].source_name
    made = net.again(
        op,
        weight=net.add_constant(op.weight, weight, source),
        bias=net.add_constant(f"{op.name}_bias", bias, source),
    )
    if name in net.affines:
        before, old_scale, old_shift = net.affines[name]
        net.affines[made] = before, old_scale * scale, old_shift * scale + shift
    return made


def _uniform(net: Net, call: Call, name: str, scale: Floats, shift: Floats) -> str:
    for function, number, nothing in (("mul.Scalar", scale[0], 1.0), ("add.Scalar", shift[0], 0.0)):
        if number != nothing:
            name = net.table(name, call.label, Pointwise(function, (..., float(number))))
    return name


def _per_channel(net: Net, call: Call, name: str, scale: Floats, shift: Floats) -> str:
    """A convolution of each channel with one weight."""
    shape = net.shape(name)
    channels = len(scale)
    source = net.view(name, shape if len(shape) == 4 else (1, channels, 1, 1))
    weight = net.add_constant(
        f"{call.label}_weight", scale.reshape(-1, 1, 1, 1), call.source("weight")
    )
    bias = net.add_constant(f"{call.label}_bias", shift, call.source("bias"))
    geometry = (1, 1), (0, 0, 0, 0), (1, 1), channels, 1
    made = net.add(
        "FloatDepthwiseConv2DOp",
        call.label,
        net.shape(source),
        source,
        weight,
        bias,
        ...,
        *geometry,
    )
    net.affines[made] = source, scale, shift
    return made


def _number_by_number(net: Net, call: Call, held: Held, scale: Floats, shift: Floats) -> Held:
    name, shape = held.name, net.shape(held.name)
    for kind, numbers, nothing in (("FloatMulOp", scale, 1.0), ("FloatAddOp", shift, 0.0)):
        if (numbers != nothing).any():
            height, width, channels = net.board_shape(name)
            area = numbers.reshape(1, height, width, channels).transpose(0, 3, 1, 2)
            constant = net.add_constant(f"{call.label}_numbers", area.reshape(shape))
            name = net.add(kind, call.label, shape, name, constant, ...)
    return Held(name, held.index)


# ---- two tensors


@rule("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add.Scalar", "sub.Scalar")
def _binary(net: Net, call: Call) -> Held | None:
    return _arithmetic(net, call, str(call.node.target).split(".")[1], call["self"], call["other"])


@rule("mul.Scalar", "div.Scalar")
def _scaled(net: Net, call: Call) -> Held | None:
    return _arithmetic(net, call, str(call.node.target).split(".")[1], call["self"], call["other"])


@rule("rsub.Scalar", "rsub.Tensor")
def _reversed(net: Net, call: Call) -> Held | None:
    return _arithmetic(net, call, "sub", call["other"], call["self"])


def _arithmetic(net: Net, call: Call, what: str, left: Any, right: Any) -> Held | None:
    alpha = 1 if call["alpha"] is None else call["alpha"]
    if isinstance(left, Held) and isinstance(right, Held):
        return _two(net, call, what, left, right, alpha)
    known = right if isinstance(left, Held) else left
    held = left if isinstance(left, Held) else right
    numbers = np.asarray(known if isinstance(known, int | float) else known.numpy(), np.float64)
    if np.broadcast_shapes(numbers.shape, held.index.shape) != held.index.shape:
        raise call.refuse("makes the tensor larger", "give known numbers the tensor's shape")
    first = held is left
    if what == "add":
        scale, shift = (1, alpha * numbers) if first else (alpha, numbers)
    elif what == "sub":
        scale, shift = (1, -alpha * numbers) if first else (-alpha, numbers)
    elif what == "mul":
        scale, shift = numbers, 0
    elif first:
        scale, shift = 1 / numbers, 0
    else:
        return pointwise(net, call)
    return affine(net, call, held, scale, shift)


def _two(net: Net, call: Call, what: str, left: Held, right: Held, alpha: float) -> Held:
    if what == "div":
        raise call.refuse("divides by a tensor that is computed")
    if left.name == right.name and np.array_equal(left.index, right.index):
        square = what == "mul"
        factor = 2.0 if square else 1 + alpha * (1 if what == "add" else -1)
        kind = "pow.Tensor_Scalar" if square else "mul.Scalar"
        name = net.table(left.name, call.label, Pointwise(kind, (..., factor)))
        return Held(name, left.index)
    factor = -alpha if what == "sub" else alpha
    if what != "mul" and factor != 1:
        right = affine(net, replace(call), right, factor, 0)
    return _combined(net, call, "FloatMulOp" if what == "mul" else "FloatAddOp", left, right)


def _combined(net: Net, call: Call, kind: str, left: Held, right: Held) -> Held:
    rank = max(left.index.ndim, right.index.ndim)
    left, right = (_small(held, rank) for held in (left, right))
    if left.index.shape == right.index.shape:
        left, right = net.whole(left), net.whole(right)
        if np.array_equal(left.index, right.index):
            shape = max(net.shape(left.name), net.shape(right.name), key=len)
            names = net.view(left.name, shape), net.view(right.name, shape)
            return Held(net.add(kind, call.label, shape, *names, ...), left.index)
    for roles in _alike(left.index.ndim - 1):
        try:
            maps = net.map(left, [roles]), net.map(right, [roles])
        except WrongLayout:
            continue
        return _broadcast(net, call, kind, *maps)
    raise WrongLayout("")


def _small(held: Held, rank: int) -> Held:
    """With as many axes, and without what ``expand`` repeats."""
    index = held.index.reshape(*(1 for _ in range(rank - held.index.ndim)), *held.index.shape)
    for axis in range(index.ndim):
        first = index.take([0], axis)
        if index.shape[axis] > 1 and (index == first).all():
            index = first
    return Held(held.name, index)


def _alike(axes: int) -> list[str]:
    return {1: ["C", "W"], 2: ["CW", "WC"], 3: ["CHW", "HWC", "WHC", "HCW"]}.get(axes, [])


def _broadcast(net: Net, call: Call, kind: str, left: Map, right: Map) -> Held:
    if not np.array_equal(left.places, right.places) and min(left.channels, right.channels) > 1:
        left, right = net.ordered(left), net.ordered(right)
    large = left if left.channels >= right.channels else right
    height, width = max(left.height, right.height), max(left.width, right.width)
    shape = (1, large.channels, height, width)
    name = net.add(kind, call.label, shape, left.name, right.name, ...)
    return replace(large, name=name, height=height, width=width).held()
