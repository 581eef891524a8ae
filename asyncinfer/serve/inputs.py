"""The inputs of a request: which there have to be, and that they fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncinfer.serve.errors import BadRequest, quoted
from asyncinfer.serve.served import Served
from asyncinfer.serve.tensors import Array, TensorSpec

__all__ = ("alike", "checked")


def checked(names: Sequence[object], served: Served) -> list[TensorSpec]:
    """The specs of inputs with these names, in their order; ``BadRequest`` if they are not all."""
    known = {spec.name: spec for spec in served.inputs}
    found = [known[name] for name in names if isinstance(name, str) and name in known]
    missing = [s.name for s in served.inputs if not (s.optional or s in found)]
    if missing or not found or len(found) != len(names) or len(set(names)) != len(names):
        raise BadRequest(f"model {served.name!r} takes {_told(served)}, not {quoted(names[:4])}")
    return found


def alike(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """These, if they have as many rows each; else ``BadRequest``."""
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise BadRequest(f"the inputs of one request need as many rows each, and have: {shown}")
    return inputs


def _told(served: Served) -> str:
    if len(served.inputs) == 1:
        return f"one input, {served.inputs[0].name!r}"
    named = (f"{s.name!r}{', which may be left out' * s.optional}" for s in served.inputs)
    return f"the inputs {'; '.join(named)}"
