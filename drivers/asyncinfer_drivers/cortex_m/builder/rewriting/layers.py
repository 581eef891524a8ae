"""Rules for layers: convolutions, linear layers, normalisation, pools, resizing, softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncinfer_drivers.cortex_m.builder.rewriting.arithmetic import affine
from asyncinfer_drivers.cortex_m.builder.rewriting.call import Call, pair, rule
from asyncinfer_drivers.cortex_m.builder.rewriting.custom import operators
from asyncinfer_drivers.cortex_m.builder.rewriting.net import Held, Map, Net
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import WrongLayout

__all__ = ("convolve",)

Floats = NDArray[np.float32]
Sides = tuple[int, int, int, int]

#: grouped convolutions of up to so many groups become ordinary ones, which CMSIS-NN has
_MOST_GROUPS = 8
#: most weights that a linear layer over time may take when it is repeated for each channel
_MOST_REPEATED = 65_536

# ---- convolutions


@rule("conv1d.default", "conv1d.padding", "conv2d.default", "conv2d.padding")
def _conv(net: Net, call: Call) -> Held:
    flat = "conv1d" in str(call.node.target)
    source = net.map(call["input"], ["CW"] if flat else ["CHW"])
    weight = call.weights("weight")
    weight = weight[:, :, None] if flat else weight
    dilation = pair(call["dilation"], flat)
    padding = _padding(call["padding"], weight.shape[2:], dilation, flat)
    made = convolve(
        net,
        call,
        source,
        weight,
        call.numbers("bias"),
        (pair(call["stride"], flat), padding, dilation),
        call["groups"],
    )
    return made.held()


def _padding(given: Any, kernel: Sequence[int], dilation: Sequence[int], flat: bool) -> Sides:
    """Top, bottom, left, right."""
    if given == "same":
        sides = list[int]()
        for size, step in zip(kernel, dilation, strict=True):
            total = step * (size - 1)
            sides += [total // 2, total - total // 2]
        return sides[0], sides[1], sides[2], sides[3]
    height, width = (0, 0) if given == "valid" else pair(given, flat, 0)
    return height, height, width, width


def convolve(
    net: Net,
    call: Call,
    source: Map,
    weight: Floats,
    bias: Floats | None,
    geometry: tuple[tuple[int, int], Sides, tuple[int, int]],
    groups: int = 1,
) -> Map:
    """A convolution; ``geometry`` is stride, padding and dilation."""
    stride, padding, dilation = geometry
    source, padding = _padded(net, source, padding)
    if groups == 1:
        weight = weight[:, np.argsort(source.places)]
        source, weight, bias = _without_affine(net, source, weight, bias, padding)
    height, width = (
        (size + sum(sides) - step * (kernel - 1) - 1) // stride[axis] + 1
        for axis, (size, sides, step, kernel) in enumerate(
            zip(
                (source.height, source.width),
                (padding[:2], padding[2:]),
                dilation,
                weight.shape[2:],
                strict=True,
            )
        )
    )
    area = height, width
    if groups > 1 and groups == source.channels:
        return _depthwise(net, call, source, weight, bias, (stride, padding, dilation), area)
    if groups > 1:
        source = net.ordered(source)
    if 1 < groups <= _MOST_GROUPS:
        parts = _grouped(net, call, source, weight, bias, (stride, padding, dilation), area, groups)
        name = net.concat(parts, 1, call.label)
    else:
        shape = (1, len(weight), *area)
        args = _weights(net, call, weight, bias)
        name = net.add(
            "FloatConv2DOp",
            call.label,
            shape,
            source.name,
            *args,
            ...,
            stride,
            padding,
            dilation,
            groups,
        )
    places = np.arange(len(weight))
    return Map(name, len(weight), *area, source.roles, places)


def _padded(net: Net, source: Map, padding: Sides) -> tuple[Map, Sides]:
    """What lies before becomes padding of the convolution, or all of it a value of its own.

    CMSIS-NN has the same padding on both sides only.
    """
    maker = net.maker(source.name)
    if isinstance(maker, net.model.FloatPad2DOp):
        more = maker.padding
        source = replace(
            source,
            name=maker.input,
            height=source.height - sum(more[:2]),
            width=source.width - sum(more[2:]),
        )
        top, bottom, left, right = (a + b for a, b in zip(padding, more, strict=True))
        padding = top, bottom, left, right
    top, bottom, left, right = padding
    if (top, left) == (bottom, right):
        return source, padding
    height, width = source.height + top + bottom, source.width + left + right
    shape = (1, source.channels, height, width)
    name = net.add("FloatPad2DOp", f"{source.name}_pad", shape, source.name, ..., padding)
    return replace(source, name=name, height=height, width=width), (0, 0, 0, 0)


def _without_affine(
    net: Net, source: Map, weight: Floats, bias: Floats | None, padding: Sides
) -> tuple[Map, Floats, Floats | None]:
    """Scale and shift of each input channel in the weights, where no zeros come in between."""
    if source.name not in net.affines:
        return source, weight, bias
    before, scale, shift = net.affines[source.name]
    if any(padding) and shift.any():
        return source, weight, bias
    start = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    start = start + (weight.astype(np.float64) * shift[None, :, None, None]).sum((1, 2, 3))
    scaled = weight * scale[None, :, None, None]
    shape = (1, source.channels, source.height, source.width)
    source = replace(source, name=net.view(before, shape))
    return source, scaled.astype(np.float32), start.astype(np.float32)


def _weights(
    net: Net, call: Call, weight: Floats, bias: Floats | None, part: str = ""
) -> tuple[str, str | None]:
    name = net.add_constant(f"{call.label}_weight{part}", weight, call.source("weight"))
    if bias is None:
        return name, None
    return name, net.add_constant(f"{call.label}_bias{part}", bias, call.source("bias"))


def _depthwise(
    net: Net,
    call: Call,
    source: Map,
    weight: Floats,
    bias: Floats | None,
    geometry: Any,
    area: tuple[int, int],
) -> Map:
    """One channel at a time: the weights take the board's order, and so do the results."""
    times = len(weight) // source.channels
    places = (source.places[:, None] * times + np.arange(times)).ravel()
    order = np.argsort(places)
    args = _weights(net, call, weight[order], None if bias is None else bias[order])
    shape = (1, len(weight), *area)
    name = net.add(
        "FloatDepthwiseConv2DOp",
        call.label,
        shape,
        source.name,
        *args,
        ...,
        *geometry,
        source.channels,
        times,
    )
    return Map(name, len(weight), *area, source.roles, places)


def _grouped(
    net: Net,
    call: Call,
    source: Map,
    weight: Floats,
    bias: Floats | None,
    geometry: Any,
    area: tuple[int, int],
    groups: int,
) -> list[str]:
    """The groups as convolutions of their own."""
    outs, ins = len(weight) // groups, source.channels // groups
    parts = list[str]()
    for at in range(groups):
        rows = slice(at * outs, (at + 1) * outs)
        piece = net.slice(source.name, 1, at * ins, (at + 1) * ins)
        args = _weights(net, call, weight[rows], None if bias is None else bias[rows], f"_{at}")
        shape = (1, outs, *area)
        parts.append(
            net.add("FloatConv2DOp", f"{call.label}_{at}", shape, piece, *args, ..., *geometry)
        )
    return parts


@rule("conv_transpose1d.default", "conv_transpose2d.input")
def _conv_transpose(net: Net, call: Call) -> Held:
    flat = "transpose1d" in str(call.node.target)
    source = net.map(call["input"], ["CW"] if flat else ["CHW"])
    weight, bias, groups = call.weights("weight"), call.numbers("bias"), call["groups"]
    weight = weight[:, :, None] if flat else weight
    if groups == 1:
        weight = weight[np.argsort(source.places)]
    else:
        source = net.ordered(source)
    top, left = pair(call["padding"], flat, 0)
    geometry = (
        pair(call["stride"], flat),
        (top, top, left, left),
        pair(call["output_padding"], flat, 0),
        pair(call["dilation"], flat),
        groups,
    )
    shape = (1, weight.shape[1] * groups, *((1, call.shape[2]) if flat else call.shape[2:]))
    args = _weights(net, call, weight, bias)
    name = net.add("FloatConvTranspose2DOp", call.label, shape, source.name, *args, ..., *geometry)
    return Map(name, shape[1], shape[2], shape[3], source.roles, np.arange(shape[1])).held()


@rule("pixel_shuffle.default")
def _pixel_shuffle(net: Net, call: Call) -> Held:
    """A transposed convolution whose weights are ones and zeros."""
    source, factor = net.map(call["self"], ["CHW"]), call["upscale_factor"]
    channels = source.channels // factor**2
    weight = np.zeros((source.channels, channels, factor, factor), dtype=np.float32)
    for at, place in enumerate(source.places):
        weight[place, at // factor**2, at % factor**2 // factor, at % factor] = 1
    shape = (1, channels, source.height * factor, source.width * factor)
    args = _weights(net, call, weight, None)
    step, none, one = (factor, factor), (0, 0, 0, 0), (1, 1)
    name = net.add(
        "FloatConvTranspose2DOp",
        call.label,
        shape,
        source.name,
        *args,
        ...,
        step,
        none,
        (0, 0),
        one,
        1,
    )
    return Map(name, *shape[1:], "CHW", np.arange(channels)).held()


@rule("pixel_unshuffle.default")
def _pixel_unshuffle(net: Net, call: Call) -> Held:
    """A convolution whose weights are ones and zeros."""
    source, factor = net.map(call["self"], ["CHW"]), call["downscale_factor"]
    weight = np.zeros((source.channels * factor**2, source.channels, factor, factor), np.float32)
    for at in range(len(weight)):
        inner = at % factor**2
        weight[at, at // factor**2, inner // factor, inner % factor] = 1
    geometry = (factor, factor), (0, 0, 0, 0), (1, 1)
    return convolve(net, call, source, weight, None, geometry).held()


# ---- linear layers


@rule("linear.default", "addmm.default", "mm.default", "matmul.default")
def _linear(net: Net, call: Call) -> Held:
    source, weight, bias = _factors(call)
    lead = source.index.shape[:-1]
    if source.index.size == source.index.shape[-1]:
        name = _fully_connected(net, call, source, weight, bias)
        return Held(name, np.arange(len(weight)).reshape(*lead, -1))
    source = net.whole(source)
    if (found := _on_channels(source)) is not None:
        places, where = found
        area = (1, source.index.size // len(places))
        board = net.board_shape(source.name)
        area = board[:2] if board[2] == len(places) else area
        name = net.view(source.name, (1, len(places), *area))
        made = convolve(
            net,
            call,
            Map(name, len(places), *area, "CHW", places),
            weight[:, :, None, None],
            bias,
            _ONE,
        )
        index = where[:, None] * len(weight) + np.arange(len(weight))
        return Held(made.name, index.reshape(*lead, -1))
    return _over_time(net, call, source, weight, bias)


_ONE = ((1, 1), (0, 0, 0, 0), (1, 1))


def _factors(call: Call) -> tuple[Held, Floats, Floats | None]:
    """Input, weight ``[out, in]`` and bias of a linear layer, however it is written."""
    if "linear" in str(call.node.target):
        weight = call.weights("weight")
        if not isinstance(call["input"], Held):
            raise call.refuse("has no input that is computed")
        return call["input"], weight, call.numbers("bias")
    bias, (left, right) = None, ("self", "mat2")
    if "addmm" in str(call.node.target):
        bias, (left, right) = call.numbers("self"), ("mat1", "mat2")
    elif "matmul" in str(call.node.target):
        right = "other"
    if not isinstance(call[left], Held) or isinstance(call[right], Held) or call[right].ndim != 2:
        raise call.refuse("multiplies two tensors that are computed")
    weight = call.weights(right)
    return call[left], np.ascontiguousarray(weight.T), bias


def _fully_connected(
    net: Net, call: Call, source: Held, weight: Floats, bias: Floats | None
) -> str:
    """Of a vector in any order: the columns of the weights follow it."""
    source = net.vector(source)
    columns = weight[:, np.argsort(source.index.ravel())]
    maker = net.maker(source.name)
    viewed = maker.input if isinstance(maker, operators().View) else source.name
    if viewed in net.affines:
        name, *factors = net.affines[viewed]
        scale, shift = (np.tile(each, columns.shape[1] // len(each)) for each in factors)
        start = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        bias = (start + columns.astype(np.float64) @ shift).astype(np.float32)
        columns = (columns * scale).astype(np.float32)
        source = Held(net.view(name, net.shape(source.name)), source.index)
    if bias is not None and bias.any() and not columns.any():
        raise call.refuse("has weights that are all zero", "leave it out: its result never changes")
    args = _weights(net, call, columns, bias)
    return net.add("FloatLinearOp", call.label, (1, len(weight)), source.name, *args, ...)


def _on_channels(source: Held) -> tuple[Any, Any] | None:
    """If the last axis is the board's channels: their places, and that of each other number."""
    rows = source.index.reshape(-1, source.index.shape[-1])
    channels = rows.shape[1]
    places = rows[0] % channels
    where = rows[:, 0] // channels
    if len(np.unique(places)) < channels:
        return None
    if not (rows == where[:, None] * channels + places).all():
        return None
    return places, where


def _over_time(net: Net, call: Call, source: Held, weight: Floats, bias: Floats | None) -> Held:
    """Over the last axis of ``[channels, time]``, for each channel the same weights."""
    found = net.map(source, ["CW"])
    if net.thrifty:
        raise WrongLayout(str(call.refuse("goes over time")))
    if weight.size * found.channels > _MOST_REPEATED:
        raise call.refuse("over time is too large", "use Conv1d over time")
    repeated = np.tile(weight, (found.channels, 1))[:, None, None]
    many = None if bias is None else np.tile(bias, found.channels)
    made = _depthwise(net, call, found, repeated, many, _ONE, (1, 1))
    return Held(made.name, made.places.reshape(1, found.channels, len(weight)))


# ---- normalisation


@rule("batch_norm.default", "_native_batch_norm_legit_no_training.default")
def _batch_norm(net: Net, call: Call) -> Held:
    if call["training"]:
        raise call.refuse("is in training mode", "call eval() before the export")
    mean, variance = call.numbers("running_mean"), call.numbers("running_var")
    if mean is None or variance is None:
        raise call.refuse("has no running statistics", "let it track them in training")
    weight, bias = call.numbers("weight"), call.numbers("bias")
    scale = 1 / np.sqrt(variance.astype(np.float64) + call["eps"])
    scale = scale if weight is None else scale * weight
    shift = -mean * scale + (0 if bias is None else bias)
    axes = (len(scale), *(1 for _ in call.shape[2:]))
    return affine(net, call, call["input"], scale.reshape(axes), shift.reshape(axes))


# ---- pools


@rule("max_pool1d.default", "max_pool2d.default", "avg_pool1d.default", "avg_pool2d.default")
def _pool(net: Net, call: Call) -> Held:
    target = str(call.node.target)
    flat, average = "1d" in target, "avg" in target
    source = net.map(call["self"], ["CW"] if flat else ["CHW"])
    kernel = pair(call["kernel_size"], flat)
    stride = pair(call["stride"] or call["kernel_size"], flat)
    top, left = pair(call["padding"], flat, 0)
    if not average and pair(call["dilation"], flat) != (1, 1):
        raise call.refuse("has a dilation", "use a larger kernel without it")
    if call["divisor_override"]:
        raise call.refuse("has a divisor of its own", "scale what comes after it")
    area = (1, call.shape[2]) if flat else (call.shape[2], call.shape[3])
    if average and (top or left) and call["count_include_pad"]:
        return _average_with_zeros(net, call, source, kernel, stride, (top, left))
    below, right = (
        max(0, (count - 1) * step + size - length - before)
        for count, step, size, length, before in zip(
            area, stride, kernel, (source.height, source.width), (top, left), strict=True
        )
    )
    padding = (top, below, left, right) if call["ceil_mode"] else (top, top, left, left)
    return _pooled(net, call, source, average, kernel, stride, padding, area).held()


def _pooled(
    net: Net,
    call: Call,
    source: Map,
    average: bool,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Sides,
    area: tuple[int, int],
) -> Map:
    kind = "FloatAveragePool2DOp" if average else "FloatMaxPool2DOp"
    shape = (1, source.channels, *area)
    name = net.add(kind, call.label, shape, source.name, ..., kernel, stride, padding)
    return replace(source, name=name, height=area[0], width=area[1])


def _average_with_zeros(
    net: Net,
    call: Call,
    source: Map,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Held:
    """Zeros around the input count: a convolution of each channel."""
    if call["ceil_mode"]:
        raise call.refuse("has ceil_mode and counts zeros", "set count_include_pad=False")
    weight = np.full((source.channels, 1, *kernel), 1 / math.prod(kernel), dtype=np.float32)
    sides = (padding[0], padding[0], padding[1], padding[1])
    geometry = (stride, sides, (1, 1))
    return convolve(net, call, source, weight, None, geometry, source.channels).held()


@rule(
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "adaptive_max_pool1d.default",
    "adaptive_max_pool2d.default",
)
def _adaptive(net: Net, call: Call) -> Any:
    target = str(call.node.target)
    flat, average = "1d" in target, "avg" in target
    source = net.map(call["self"], ["CW"] if flat else ["CHW"])
    given = [source.width] if flat else [source.height, source.width]
    wanted = [call["output_size"]] if isinstance(call["output_size"], int) else call["output_size"]
    pairs = list(zip(given, [w or g for w, g in zip(wanted, given, strict=True)], strict=True))
    if any(size % want for size, want in pairs):
        sizes = " x ".join(str(size) for size, _ in pairs)
        raise call.refuse(f"has sizes that do not divide {sizes}")
    kernel = pair([size // want for size, want in pairs], flat)
    area = pair([want for _, want in pairs], flat)
    if average and area == (1, 1):
        return _mean(net, call, source).held()
    found = _pooled(net, call, source, average, kernel, kernel, (0, 0, 0, 0), area).held()
    return found if average else (found, None)


def _mean(net: Net, call: Call, source: Map, axes: str = "HW") -> Map:
    """Over rows, columns or both, rounded once to a scale of its own."""
    height = 1 if "H" in axes else source.height
    width = 1 if "W" in axes else source.width
    if (height, width) == (source.height, source.width):
        return source
    if height == width == 1:
        shape = (1, source.channels, 1, 1)
        name = net.add("FloatReduceMeanOp", call.label, shape, source.name, ..., (2, 3), True)
        return replace(source, name=name, height=1, width=1)
    kernel = source.height // height, source.width // width
    return _pooled(net, call, source, True, kernel, kernel, (0, 0, 0, 0), (height, width))


@rule("mean.dim", "mean.default", "sum.dim_IntList", "sum.default", "amax.default")
def _reduce(net: Net, call: Call) -> Held:
    held, target = call["self"], str(call.node.target)
    rank = held.index.ndim
    axes = sorted({axis % rank for axis in call["dim"] or range(rank)} - {0})
    found = net.map(held)
    roles = "".join(found.roles[axis - 1] for axis in axes)
    count = math.prod(held.index.shape[axis] for axis in axes)
    if "amax" in target:
        found = _largest(net, call, found, roles)
    else:
        found = _mean(net, call, found, roles)
        if "C" in roles:
            weight = np.full((1, found.channels, 1, 1), 1 / found.channels, np.float32)
            found = convolve(net, call, found, weight, None, _ONE)
    made = Held(found.name, found.held().index.reshape(call.shape))
    return affine(net, call, made, count, 0) if "sum" in target else made


@rule("max.dim")
def _max(net: Net, call: Call) -> Any:
    found = net.map(call["self"])
    role = found.roles[call["dim"] % call["self"].index.ndim - 1]
    made = _largest(net, call, found, role)
    shape = call.node.meta["val"][0].shape
    return Held(made.name, made.held().index.reshape(tuple(shape))), None


def _largest(net: Net, call: Call, source: Map, roles: str) -> Map:
    if "C" in roles:
        raise call.refuse("goes over channels", "leave it to the host at the end")
    height = 1 if "H" in roles else source.height
    width = 1 if "W" in roles else source.width
    kernel = source.height // height, source.width // width
    return _pooled(net, call, source, False, kernel, kernel, (0, 0, 0, 0), (height, width))


# ---- others


@rule(
    "upsample_nearest1d.vec",
    "upsample_nearest1d.default",
    "upsample_nearest2d.vec",
    "upsample_nearest2d.default",
    "upsample_linear1d.vec",
    "upsample_bilinear2d.vec",
    "upsample_bilinear2d.default",
)
def _resize(net: Net, call: Call) -> Held:
    target = str(call.node.target)
    flat = "1d" in target
    source = net.map(call["input"] or call["self"], ["CW"] if flat else ["CHW"])
    area = (1, call.shape[2]) if flat else (call.shape[2], call.shape[3])
    shape = (1, source.channels, *area)
    if "nearest" in target:
        name = net.add("FloatResizeNearest2DOp", call.label, shape, source.name, ...)
    else:
        corners = bool(call["align_corners"])
        name = net.add("FloatResizeBilinear2DOp", call.label, shape, source.name, ..., corners)
    return replace(source, name=name, height=area[0], width=area[1]).held()


@rule("softmax.int", "_softmax.default")
def _softmax(net: Net, call: Call) -> Held:
    held = call["self"]
    if held.index.shape[call["dim"]] != held.index.size:
        raise call.refuse("goes over one axis of several")
    source = net.vector(held)
    name = net.add("FloatSoftmaxOp", call.label, net.shape(source.name), source.name, ..., -1)
    return Held(name, source.index)
