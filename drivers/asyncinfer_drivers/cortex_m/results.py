"""From the bytes of an answer to what the module returns: a tensor, several, or named ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asyncinfer_drivers.cortex_m.host_steps import split, steps_of
from asyncinfer_drivers.cortex_m.specs import TensorSpec
from asyncinfer_drivers.cortex_m.tensors import OutputCodec

__all__ = ("ResultCodec", "mapped")

#: one step of a path: ``[0]``, ``['boxes']`` or ``.logits``
_STEP = re.compile(r"\[(\d+)\]|\['([^']*)'\]|\.(\w+)")


class ResultCodec:
    """Makes results of samples' bytes.

    The outputs of a model follow one another in each sample's bytes. Their names say where they
    are in what PyTorch's module returns: ``output[1]`` is the second of a tuple, and
    ``output['boxes']`` is in a dict. One that is called otherwise is the result itself. They say
    too what is left to the host, which is done here unless ``raw``.
    """

    def __init__(
        self, specs: Sequence[TensorSpec], *, raw: bool = False, channels_first: bool | None = None
    ) -> None:
        self._codecs = [OutputCodec(one, raw=raw, channels_first=channels_first) for one in specs]
        self._ends = np.cumsum([spec.size for spec in specs]).tolist()
        self._paths = [_path(split(spec.name)[0]) for spec in specs]
        #: what the host does, of the outputs that have something left
        self._steps = {
            at: steps_of(spec.name)
            for at, spec in enumerate(specs)
            if split(spec.name)[1] and not raw
        }
        if len(specs) > 1 and not all(self._paths):
            self._paths = [(at,) for at in range(len(specs))]

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


def _path(name: str) -> tuple[int | str, ...]:
    """The steps to an output from its name; none if it is the result."""
    start, end = len("output"), len(name)
    steps = list[int | str]()
    while name.startswith("output") and start < end:
        found = _STEP.match(name, start)
        if found is None:
            return ()
        steps.append(int(found[1]) if found[1] else found[2] if found[3] is None else found[3])
        start = found.end()
    return tuple(steps)


def _built(paths: Sequence[tuple[int | str, ...]], arrays: Sequence[Any]) -> Any:
    """Tuples and dicts, so that each of ``arrays`` is where its path says."""
    if not paths[0]:
        return arrays[0]
    groups: dict[int | str, list[tuple[tuple[int | str, ...], Any]]] = {}
    for path, array in zip(paths, arrays, strict=True):
        groups.setdefault(path[0] if path else "", []).append((path[1:], array))
    made = {step: _built(*zip(*group, strict=True)) for step, group in groups.items()}
    if all(isinstance(step, int) for step in made):
        return tuple(made[step] for step in sorted(made, key=int))
    return made
