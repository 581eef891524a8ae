"""The INT8 compiler's float layers on whole arrays, to the last bit as its own loops compute them.

Its loops add one product after another in float32, which no convolution of a library does. Here the
order of the additions is kept, and each is done for all numbers of a layer's output at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ("conv2d", "conv_transpose2d", "patches", "pool2d", "resize2d")

Floats = NDArray[np.float32]
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


def conv2d(
    source: Floats,
    weight: Floats,
    bias: Floats | None,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    *,
    depthwise: bool,
    depth_multiplier: int = 1,
    groups: int = 1,
) -> Floats:
    """As bakenn's ``_conv2d``: over input channels, then rows, then columns of the kernel."""
    del depth_multiplier  # follows from the shapes
    groups = source.shape[1] if depthwise else groups
    windows = patches(source[0], weight.shape[2:], stride, padding, dilation)
    channels, *kernel, height, width = windows.shape
    columns = windows.reshape(groups, channels // groups * kernel[0] * kernel[1], -1)
    return _accumulate(columns, weight, bias).reshape(1, len(weight), height, width)


def conv_transpose2d(
    source: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    stride: Pair,
    padding: Sides,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
) -> NDArray[Any]:
    """As bakenn's ``_conv_transpose2d``: over input channels, then the input's rows and columns.

    A later place of the input meets an earlier one of the kernel, so kernels are gone through
    backwards. Doubles stay doubles.
    """
    _, channels, height, width = source.shape
    _, outputs, kernel_height, kernel_width = weight.shape
    rows = (height - 1) * stride[0] + dilation[0] * (kernel_height - 1) + output_padding[0] + 1
    columns = (width - 1) * stride[1] + dilation[1] * (kernel_width - 1) + output_padding[1] + 1
    result = np.zeros((groups, outputs, rows, columns), dtype=source.dtype)
    if bias is not None:
        result += bias.reshape(groups, outputs, 1, 1)
    for channel in range(channels):
        target = result[channel // (channels // groups)]
        for y in reversed(range(kernel_height)):
            down = slice(y * dilation[0], y * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
            for x in reversed(range(kernel_width)):
                start = x * dilation[1]
                across = slice(start, start + (width - 1) * stride[1] + 1, stride[1])
                target[:, down, across] += (
                    source[0, channel] * weight[channel, :, y, x][:, None, None]
                )
    kept = result[..., padding[0] : rows - padding[1], padding[2] : columns - padding[3]]
    return np.ascontiguousarray(kept).reshape(1, groups * outputs, *kept.shape[2:])


def pool2d(source: Floats, kernel: Pair, stride: Pair, padding: Sides, *, average: bool) -> Floats:
    """As bakenn's ``_pool2d``: what lies outside the input does not count."""
    _, channels, height, width = source.shape
    rows = (height + padding[0] + padding[1] - kernel[0]) // stride[0] + 1
    columns = (width + padding[2] + padding[3] - kernel[1]) // stride[1] + 1
    result = np.empty((1, channels, rows, columns), dtype=np.float32)
    for row in range(rows):
        top = row * stride[0] - padding[0]
        for column in range(columns):
            left = column * stride[1] - padding[2]
            window = source[
                0, :, max(0, top) : top + kernel[0], max(0, left) : left + kernel[1]
            ].reshape(channels, -1)
            if average:
                # a row in one piece is summed up in the same order as that row alone
                found: Any = np.ascontiguousarray(window).mean(axis=1, dtype=np.float32)
            else:
                found = window.max(axis=1)
            result[0, :, row, column] = found
    return result


def resize2d(
    source: Floats, output_shape: tuple[int, ...], *, bilinear: bool, align_corners: bool = False
) -> Floats:
    """As bakenn's ``_resize2d``: places in doubles, weights and numbers in float32."""
    sizes = list(zip(source.shape[2:], output_shape[2:], strict=True))
    if not bilinear:
        rows, columns = (np.arange(after) * before // after for before, after in sizes)
        return source[:, :, rows[:, None], columns]
    (y0, y1, wy), (x0, x1, wx) = (_between(*pair, align_corners) for pair in sizes)
    up, down = (1.0 - wy).astype(np.float32)[:, None], wy.astype(np.float32)[:, None]
    left, right = (1.0 - wx).astype(np.float32), wx.astype(np.float32)
    above, below = y0[:, None], y1[:, None]
    result: Floats = (
        source[:, :, above, x0] * up * left
        + source[:, :, above, x1] * up * right
        + source[:, :, below, x0] * down * left
        + source[:, :, below, x1] * down * right
    )
    return result


def _between(before: int, after: int, align_corners: bool) -> tuple[Any, Any, Any]:
    """For each place: the two of the input that it lies between, and how near to the second."""
    places = np.arange(after)
    if align_corners and after > 1:
        found = places * (before - 1) / (after - 1)
    else:
        found = np.clip((places + 0.5) * before / after - 0.5, 0.0, before - 1.0)
    first = np.floor(found).astype(int)
    return first, np.minimum(before - 1, first + 1), found - first


def patches(
    source: NDArray[Any], kernel: Pair, stride: Pair, padding: Sides, dilation: Pair
) -> NDArray[Any]:
    """Of ``[channels, height, width]``: ``[channels, *kernel, rows, columns]``, zeros around it."""
    padded = np.pad(source, ((0, 0), padding[:2], padding[2:]))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True))
    windows = sliding_window_view(padded, reach, axis=(1, 2))
    picked = windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    return np.ascontiguousarray(picked.transpose(0, 3, 4, 1, 2))


def _accumulate(columns: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """``weight @ columns + bias`` of each group, one product after another."""
    groups, terms, places = columns.shape
    factors = np.ascontiguousarray(weight.reshape(groups, -1, terms).transpose(2, 0, 1))
    shape = (groups, factors.shape[2], places)
    total = np.zeros(shape, dtype=np.float32)
    if bias is not None:
        total += bias.reshape(groups, -1, 1)
    product = np.empty(shape, dtype=np.float32)
    for term in range(terms):
        np.multiply(columns[:, term, None, :], factors[term, :, :, None], out=product)
        np.add(total, product, out=total)
    return total
