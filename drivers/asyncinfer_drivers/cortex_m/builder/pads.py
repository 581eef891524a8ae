"""Zeros around a convolution's input become the convolution's own padding, which copies nothing.

``nn.ZeroPad2d`` before a convolution is how a model from TensorFlow writes "same" padding. As a
layer of its own it takes time, and a second copy of the largest tensor in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

__all__ = ("centred", "fold_pads")

_MODEL = "bakenn.frontends.torch_export.model"


def fold_pads(graph: Any) -> Any:
    """``graph`` (a ``FloatGraph``) without the pads that its convolutions can do themselves."""
    model = import_module(_MODEL)
    for pad in graph.ops:
        if type(pad) is model.FloatPad2DOp and pad.output not in graph.outputs:
            graph = _without(graph, pad)
    return graph


def centred(padding: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether CMSIS-NN can do it: the same on both sides, or one more at the end, as in TensorFlow.

    CMSIS-NN is told only where the input begins; some kernels read beyond its end if more is left.
    """
    top, bottom, left, right = padding
    sides = ((top, bottom, kernel[0]), (left, right, kernel[1]))
    return all(end == begin or (end == begin + 1 and 2 * end <= size) for begin, end, size in sides)


def _without(graph: Any, pad: Any) -> Any:
    changed = {}
    for reader in graph.ops:
        if pad.output in reader.inputs:
            convolution = _padded(graph, reader, pad)
            if convolution is None:
                return graph
            changed[reader.name] = convolution
    ops = tuple(changed.get(op.name, op) for op in graph.ops if op is not pad)
    values = {name: value for name, value in graph.values.items() if name != pad.output}
    return replace(graph, ops=ops, values=values)


def _padded(graph: Any, reader: Any, pad: Any) -> Any:
    """``reader`` with ``pad`` in it; ``None`` if it is no convolution, or cannot."""
    model = import_module(_MODEL)
    if type(reader) not in (model.FloatConv2DOp, model.FloatDepthwiseConv2DOp):
        return None
    both = tuple(a + b for a, b in zip(reader.padding, pad.padding, strict=True))
    kernel = graph.values[reader.weight].shape[2:]
    return replace(reader, input=pad.input, padding=both) if centred(both, kernel) else None
