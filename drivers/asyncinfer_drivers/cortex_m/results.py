"""From the bytes of an answer to what the module returns: a tensor, several, or named ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asyncinfer_drivers.cortex_m.host_steps import split, steps_of
from asyncinfer_drivers.cortex_m.places import Place, Step, place_of
from asyncinfer_drivers.cortex_m.specs import TensorSpec
from asyncinfer_drivers.cortex_m.tensors import OutputCodec

__all__ = ("ResultCodec", "mapped")


class ResultCodec:
    """Makes results of samples' bytes.

    The outputs of a model follow one another in each sample's bytes. Their names say where they
    are in what PyTorch's module returns: ``output[1]`` is the second of a tuple, and
    ``output['boxes']`` is in a dict. One that is called otherwise is the result itself. They say
    too what is left to the host, which is done here unless ``raw``, on PyTorch's axes: what has as
    many afterwards is then brought into the board's order if ``channels_first`` is false.
    """

    def __init__(
        self, specs: Sequence[TensorSpec], *, raw: bool = False, channels_first: bool | None = None
    ) -> None:
        #: what the host does, of the outputs that have something left
        self._steps = {
            at: _step(spec, channels_first)
            for at, spec in enumerate(specs)
            if split(spec.name)[1] and not raw
        }
        told = {at for at in self._steps if specs[at].axes is not None}
        orders = [None if at in told else channels_first for at in range(len(specs))]
        self._codecs = [
            OutputCodec(spec, raw=raw, channels_first=order)
            for spec, order in zip(specs, orders, strict=True)
        ]
        self._ends = np.cumsum([spec.size for spec in specs]).tolist()
        self._paths = [place_of(split(spec.name)[0]) for spec in specs]
        if len(specs) > 1 and not all(self._paths):
            self._paths = [(Step(at),) for at in range(len(specs))]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of the output; of each if there are several."""
        shapes = [codec.shape for codec in self._codecs]
        for at, step in self._steps.items():
            shapes[at] = step(np.zeros(shapes[at], np.float32)).shape
        return tuple(shapes) if len(shapes) > 1 else shapes[0]

    def decode(self, data: bytes, count: int) -> list[Any]:
        """``count`` results, each with arrays of its own."""
        if len(self._codecs) == 1:
            columns = [self._codecs[0].decode(data, count)]
        else:
            whole = np.frombuffer(data, np.uint8).reshape(count, self._ends[-1])
            parts = np.split(whole, self._ends[:-1], axis=1)
            pairs = zip(self._codecs, parts, strict=True)
            columns = [codec.decode(part.tobytes(), count) for codec, part in pairs]
        for at, step in self._steps.items():
            columns[at] = [step(array) for array in columns[at]]
        return [_built(self._paths, row) for row in zip(*columns, strict=True)]


def mapped(result: Any, function: Callable[[Any], Any]) -> Any:
    """A result with ``function`` of each of its arrays."""
    if isinstance(result, dict):
        return {key: mapped(value, function) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(mapped(value, function) for value in result)
    return function(result)


def _step(spec: TensorSpec, channels_first: bool | None) -> Callable[[Any], Any]:
    """What the host does with an output in PyTorch's order of axes."""
    step, axes = steps_of(spec.name), spec.axes
    if channels_first is not False or not axes:
        return step

    def ordered(array: Any) -> Any:
        made = step(array)
        return made.transpose(axes) if made.ndim == len(axes) else made

    return ordered


def _built(paths: Sequence[Place], arrays: Sequence[Any]) -> Any:
    """Tuples and dicts, so that each of ``arrays`` is where its path says."""
    if not paths[0]:
        return arrays[0]
    groups: dict[Step, list[tuple[Place, Any]]] = {}
    for path, array in zip(paths, arrays, strict=True):
        groups.setdefault(path[0] if path else Step(""), []).append((path[1:], array))
    made = {step: _built(*zip(*group, strict=True)) for step, group in groups.items()}
    if all(step.is_index for step in made):
        return tuple(made[step] for step in sorted(made, key=lambda step: int(step.key)))
    return {step.key: value for step, value in made.items()}
