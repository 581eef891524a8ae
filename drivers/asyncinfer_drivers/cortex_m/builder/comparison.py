"""Measures a build's precision: the whole model with the C reference, its layers with a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer_drivers.cortex_m.builder import adapted, integer_kernels
from asyncinfer_drivers.cortex_m.builder.judge import encode
from asyncinfer_drivers.cortex_m.builder.precision import BEST_SNR, LayerPrecision, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncinfer_drivers.cortex_m.builder.compile import Captured
    from asyncinfer_drivers.cortex_m.builder.reference import IntegerReference
    from asyncinfer_drivers.cortex_m.specs import TensorSpec

__all__ = ("compare", "compare_layers")

#: operations that only look at the same numbers in another shape
_VIEWS = ("Flatten", "Reshape", "View", "Join")


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
    captured: Captured,
    inputs: NDArray[np.float32],
    reference: IntegerReference,
    source: TensorSpec,
    targets: Sequence[TensorSpec],
    counted: Callable[[int], None] = lambda done: None,
) -> Precision:
    """Run a module and its integers on ``inputs``; ``counted`` hears of each.

    Of several outputs the worst one counts.
    """
    totals = [_Difference() for _ in targets]
    ends = np.cumsum([target.size for target in targets])
    same = places = 0
    for at, sample in enumerate(inputs, 1):
        parts = np.split(reference(encode(source, sample[None])).ravel(), ends[:-1])
        rights = captured.right(sample[None])
        for total, target, right, part in zip(totals, targets, rights, parts, strict=True):
            numbers = part.reshape(right.shape).astype(np.float64)
            found = (numbers - target.zero_point) * target.scale
            total.add(right, found)
            if right.shape[-1] > 1:
                same += int((right.argmax(-1) == found.argmax(-1)).sum())
                places += right.size // right.shape[-1]
        counted(at)
    known = [total.variation_db for total in totals if total.variation_db is not None]
    return Precision(
        len(inputs),
        min(total.snr_db for total in totals),
        max(total.worst for total in totals),
        same / places if places else None,
        min(known, default=None),
    )


def compare_layers(
    captured: Captured,
    plan: Any,
    inputs: NDArray[np.float32],
    source: TensorSpec,
    counted: Callable[[int], None] = lambda done: None,
) -> tuple[LayerPrecision, ...]:
    """The layers of ``plan`` beside those of the float graph, on ``inputs``.

    For each layer: how good the output is if all up to it is in integers and the rest in float.
    Its own numbers would not tell: one large channel hides that the others are lost. What the
    compiler fused is compared where its numbers are there again.
    """
    graph, balance = captured.graph, _balance(captured.graph, plan)
    views = {op.output for op in graph.ops if _kind(op) in _VIEWS}
    found: dict[str, _Difference] = {}
    for at, sample in enumerate(inputs, 1):
        floats = adapted.evaluate(graph, captured.samples(sample[None]))
        integers = integer_kernels.trace(plan, encode(source, sample[None]))
        for name in floats:
            if name in integers and name not in graph.constants and name not in views:
                kind = plan.tensors[name].tensor_type
                codes = integers[name].reshape(kind.shape).astype(np.float64)
                real = (codes - kind.qparams.zero_point) * kind.qparams.scale
                changed = np.moveaxis(real, -1, 1) if real.ndim > 2 else real
                output = adapted.evaluate_from(graph, floats, name, changed)
                difference = found.setdefault(name, _Difference())
                difference.add(floats[graph.outputs[0]] * balance, output * balance)
                difference.own = max(difference.own, float(np.abs(floats[name] - changed).max()))
        counted(at)
    return tuple(_layers(graph, found))


def _balance(graph: Any, plan: Any) -> NDArray[np.float64]:
    """Factors that make several outputs of equal weight."""
    last = graph.ops[-1]
    if _kind(last) != "Join":
        return np.ones(1)
    kinds = [plan.tensors[name].tensor_type for name in last.inputs]
    return np.concatenate([np.full(kind.numel, 1 / kind.qparams.scale) for kind in kinds])


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
