"""What each step of a compiled model computes in integers, on whole arrays.

The compiler's own Python reference takes seconds for a sample; the C that it writes has no values
but the last. Steps that are not here are quick enough in its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncinfer_drivers.cortex_m.builder.float_kernels import conv_transpose2d, patches

__all__ = ("trace",)

Values = dict[str, NDArray[Any]]


def trace(plan: Any, numbers: NDArray[np.int8]) -> Mapping[str, NDArray[Any]]:
    """All values of ``plan`` for one sample ``[1, ...]``, channels last."""
    reference = import_module("bakenn.reference")
    shape = plan.tensors[plan.inputs[0]].tensor_type.shape
    values: Values = {**plan.constants, plan.inputs[0]: numbers.reshape(shape)}
    for step in plan.steps:
        kernel = _KERNELS.get(type(step).__name__)
        if kernel is None:
            values.update(reference.execute_step(step, plan, values))
        else:
            kind = plan.tensors[step.output].tensor_type
            real = kernel(step, plan, values).reshape(kind.shape) + kind.qparams.zero_point
            limited = real.clip(step.activation_min, step.activation_max)
            values[step.output] = limited.astype(np.int8)
    return values


def _conv2d(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    channels_first = _centred(plan, values, step.input)[0].transpose(2, 0, 1)
    weight = values[step.weight].transpose(0, 3, 1, 2)
    windows = patches(channels_first, weight.shape[2:], step.stride, step.padding, step.dilation)
    return _convolve(step, windows, weight, values[step.bias], step.groups)


def _depthwise(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    channels_first = _centred(plan, values, step.input)[0].transpose(2, 0, 1)
    weight = values[step.weight].transpose(2, 0, 1)[:, None]
    windows = patches(channels_first, weight.shape[2:], step.stride, step.padding, step.dilation)
    return _convolve(step, windows, weight, values[step.bias], len(channels_first))


def _convolve(
    step: Any, windows: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], groups: int
) -> NDArray[np.int64]:
    channels, *kernel, height, width = windows.shape
    columns = windows.reshape(groups, channels // groups * kernel[0] * kernel[1], height * width)
    sums = weight.reshape(groups, -1, columns.shape[1]).astype(np.float64) @ columns
    return _rescaled(step, sums.reshape(len(weight), -1).T, bias)


def _transposed(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    source = _centred(plan, values, step.input).transpose(0, 3, 1, 2)
    stored = values[step.weight].astype(np.float64)
    outputs, *kernel, inputs = stored.shape
    grouped = stored.reshape(step.groups, outputs // step.groups, *kernel, inputs)
    weight = grouped.transpose(0, 4, 1, 2, 3).reshape(-1, outputs // step.groups, *kernel)
    geometry = step.stride, step.padding, step.output_padding, step.dilation
    sums = conv_transpose2d(source, weight, None, *geometry, step.groups)
    return _rescaled(step, sums[0].reshape(outputs, -1).T, values[step.bias])


def _linear(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    source = _centred(plan, values, step.input).reshape(-1)
    sums = values[step.weight].astype(np.float64) @ source
    return _rescaled(step, sums, values[step.bias])


def _add(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    total: Any = 0
    for name, factor, shift in (
        (step.input_a, step.input_a_multiplier, step.input_a_shift),
        (step.input_b, step.input_b_multiplier, step.input_b_shift),
    ):
        centred = _centred(plan, values, name).astype(np.int64) << step.left_shift
        total = total + _multiplied(centred, factor, shift)
    return _multiplied(total, step.output_multiplier, step.output_shift)


def _mul(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    product = _centred(plan, values, step.input_a) * _centred(plan, values, step.input_b)
    return _multiplied(product.astype(np.int64), step.output_multiplier, step.output_shift)


def _requantize(step: Any, plan: Any, values: Values) -> NDArray[np.int64]:
    centred = _centred(plan, values, step.input).astype(np.int64)
    return _multiplied(centred, step.multiplier, step.shift)


_KERNELS = {
    "Conv2DStep": _conv2d,
    "DepthwiseConv2DStep": _depthwise,
    "ConvTranspose2DStep": _transposed,
    "LinearStep": _linear,
    "AddStep": _add,
    "MulStep": _mul,
    "RequantizeStep": _requantize,
}


def _centred(plan: Any, values: Values, name: str) -> NDArray[np.float64]:
    """A tensor without its zero point; doubles hold all sums of such numbers exactly."""
    zero_point = plan.tensors[name].tensor_type.qparams.zero_point
    centred: NDArray[np.float64] = values[name].astype(np.float64) - zero_point
    return centred


def _rescaled(step: Any, sums: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.int64]:
    """Sums whose last axis is the channels, on the scale of the output."""
    return _multiplied(sums.astype(np.int64) + bias, step.multipliers, step.shifts)


def _multiplied(numbers: NDArray[np.int64], factor: Any, shift: Any) -> NDArray[np.int64]:
    """As bakenn's ``multiply_by_quantized_multiplier``, of one channel or of each."""
    factors, shifts = np.asarray(factor, np.int64), np.asarray(shift, np.int64)
    product = (numbers << np.maximum(shifts, 0)) * factors
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    right = np.maximum(-shifts, 0)
    half = (1 << right) >> 1
    rounded: NDArray[Any] = np.sign(high) * ((np.abs(high) + half) >> right)
    return rounded
