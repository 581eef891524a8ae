"""Measures a build's precision: the whole model with the C reference, its layers with a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer_drivers.cortex_m.axes import Order
from asyncinfer_drivers.cortex_m.builder import adapted, integer_kernels
from asyncinfer_drivers.cortex_m.builder.judge import encode
from asyncinfer_drivers.cortex_m.builder.precision import BEST_SNR, LayerPrecision, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from asyncinfer_drivers.cortex_m.builder.reference import IntegerReference
    from asyncinfer_drivers.cortex_m.specs import TensorSpec

__all__ = ("compare", "compare_layers")

#: operations that only look at the same numbers in another shape
_VIEWS = ("Flatten", "Reshape")


class _Difference:
    """Adds up how far integers are from floats."""

    def __init__(self) -> None:
        self.worst = 0.0
        #: the largest difference of the layer's own numbers
        self.own = 0.0
        self._signal = 0.0
        self._noise = 0.0
        self._count = 0
        self._sum: Any = 0.0

    def add(self, right: NDArray[Any], found: NDArray[Any]) -> None:
        right = right.astype(np.float64)
        error = np.abs(right - found)
        self._signal += float(np.square(right).sum())
        self._noise += float(np.square(error).sum())
        self.worst = max(self.worst, float(error.max()))
        self._count += 1
        self._sum = self._sum + right

    @property
    def snr_db(self) -> float:
        return _decibels(self._signal, self._noise)

    @property
    def variation_db(self) -> float | None:
        constant = float(np.square(self._sum).sum()) / self._count
        varying = self._signal - constant
        if varying <= 1e-12 * self._signal:  # no more than the rounding of these sums
            return None
        return _decibels(varying, self._noise)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if signal == 0 or not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def compare(
    module: nn.Module,
    inputs: NDArray[np.float32],
    reference: IntegerReference,
    source: TensorSpec,
    target: TensorSpec,
    counted: Callable[[int], None] = lambda done: None,
) -> Precision:
    """Run ``module`` and its integers on ``inputs``; ``counted`` hears of each."""
    total, same, places = _Difference(), 0, 0
    channels = target.shape[-1] if target.shape else 1
    order = Order.torch(target)
    for at, sample in enumerate(inputs, 1):
        right = order.to_board(_output(module, sample[None])[0])[None]
        numbers = reference(encode(source, sample[None])).astype(np.float64)
        found = (numbers - target.zero_point) * target.scale
        total.add(right, found)
        same += int((right.argmax(-1) == found.argmax(-1)).sum())
        places += right.size // channels
        counted(at)
    agreement = same / places if channels > 1 else None
    return Precision(len(inputs), total.snr_db, total.worst, agreement, total.variation_db)


def compare_layers(
    graph: Any,
    plan: Any,
    inputs: NDArray[np.float32],
    source: TensorSpec,
    counted: Callable[[int], None] = lambda done: None,
) -> tuple[LayerPrecision, ...]:
    """The layers of ``plan`` beside those of the float ``graph``, on ``inputs``.

    For each layer: how good the output is if all up to it is in integers and the rest in float.
    Its own numbers would not tell: one large channel hides that the others are lost. What the
    compiler fused is compared where its numbers are there again.
    """
    views = {op.output for op in graph.ops if _kind(op) in _VIEWS}
    found: dict[str, _Difference] = {}
    for at, sample in enumerate(inputs, 1):
        floats = adapted.evaluate(graph, sample[None])
        integers = integer_kernels.trace(plan, encode(source, sample[None]))
        for name in floats:
            if name in integers and name not in graph.constants and name not in views:
                kind = plan.tensors[name].tensor_type.qparams
                real = (integers[name].astype(np.float64) - kind.zero_point) * kind.scale
                changed = np.moveaxis(real, -1, 1) if real.ndim > 2 else real
                output = adapted.evaluate_from(graph, floats, name, changed)
                difference = found.setdefault(name, _Difference())
                difference.add(floats[graph.outputs[0]], output)
                difference.own = max(difference.own, float(np.abs(floats[name] - changed).max()))
        counted(at)
    return tuple(_layers(graph, found))


def _layers(graph: Any, found: Mapping[str, _Difference]) -> Sequence[LayerPrecision]:
    """Each compared value with what it lost since the compared ones that it was made of."""
    start = graph.inputs[0]
    first = found[start]
    lost = max(0.0, BEST_SNR - first.snr_db)
    layers = [LayerPrecision("input", first.snr_db, lost, first.own)]
    before = {start: first.snr_db}  # the worst on the way to each value
    labels: dict[str, list[Any]] = {}
    for op in graph.ops:
        fused = [part for name in op.inputs if name not in found for part in labels.get(name, [])]
        entry = min((before[name] for name in op.inputs if name in before), default=BEST_SNR)
        if op.output in found:
            now = found[op.output]
            lost = max(0.0, min(entry, BEST_SNR) - now.snr_db)
            name = _name(graph, [*fused, op])
            layers.append(LayerPrecision(name, now.snr_db, lost, now.own))
            before[op.output] = now.snr_db
        else:
            before[op.output] = entry
            labels[op.output] = fused if _kind(op) in _VIEWS else [*fused, op]
    return layers


def _name(graph: Any, ops: Sequence[Any]) -> str:
    kinds = ", ".join(map(_kind, ops))
    weights = (getattr(op, "weight", None) for op in ops)
    stored = next((weight for weight in weights if weight), "")
    value = graph.values.get(stored.partition(".folded_bn")[0])
    module = str(value.source_name or "").rpartition(".")[0] if value else ""
    return f"{module or ops[-1].name} ({kinds})"


def _kind(op: object) -> str:
    return type(op).__name__.removeprefix("Float").removesuffix("Op")


def _output(module: nn.Module, sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one tensor that ``module`` returns for one sample."""
    import torch

    with torch.inference_mode():
        output = module(torch.from_numpy(np.ascontiguousarray(sample)))
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    array: NDArray[np.float32] = output.float().numpy()
    return array
