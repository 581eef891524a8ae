"""What a server says about its model, compared with what is expected of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.open_inference.tensors import DATATYPES

__all__ = ("ModelSpec", "TensorSpec", "alike", "fits", "model_spec", "tensor_specs")


class TensorSpec(NamedTuple):
    """One input or output of a model, as the protocol describes it."""

    name: str
    #: ``FP32``, ``INT64``, ``BYTES``, ...; empty if unknown
    datatype: str = ""
    #: -1 is any size; ``None`` if unknown
    shape: tuple[int, ...] | None = None
    #: of an input: whether a task may leave it out
    optional: bool = False

    def __str__(self) -> str:
        shape = "any shape" if self.shape is None else str(list(self.shape))
        return f"{self.name!r} {self.datatype or 'of any type'} {shape}"

    @property
    def row(self) -> tuple[int, ...] | None:
        """The shape without its first dimension."""
        return None if self.shape is None else self.shape[1:]

    def fits(self, other: TensorSpec) -> bool:
        """Whether a tensor could be both."""
        same = not (self.datatype and other.datatype) or self.datatype == other.datatype
        return self.name == other.name and same and fits(self.shape, other.shape)

    def over(self, other: TensorSpec) -> TensorSpec:
        """This one, and what it leaves open from ``other``."""
        shape = self.shape if self.shape is not None else other.shape
        optional = self.optional or other.optional
        return TensorSpec(self.name, self.datatype or other.datatype, shape, optional)


class ModelSpec(NamedTuple):
    """A model as the driver uses it."""

    inputs: tuple[TensorSpec, ...]
    #: empty if the server does not say
    outputs: tuple[TensorSpec, ...]
    #: whether the first dimension of every tensor is the batch
    batched: bool
    #: the most tasks in one request; ``None``: no limit known
    most: int | None

    @property
    def needed(self) -> tuple[TensorSpec, ...]:
        """The inputs that every task has."""
        return tuple(one for one in self.inputs if not one.optional)

    def as_before(self, name: str, before: ModelSpec | None) -> ModelSpec:
        """The same with its tensors in the order of ``before``: tuples keep theirs.

        Raises ``ConfigError`` if it is another model.
        """
        if before is None:
            return self
        inputs, outputs = (
            _in_order(self.inputs, before.inputs),
            _in_order(self.outputs, before.outputs),
        )
        same = alike(inputs, before.inputs) and self.batched == before.batched
        untold = not (outputs and before.outputs)
        if not (same and (untold or alike(outputs, before.outputs))):
            raise ConfigError(
                f"{name}: the model was opened with {before}, and is another one now, with {self}: "
                "if that is right, make a new driver"
            )
        return self._replace(inputs=inputs, outputs=outputs)

    def __str__(self) -> str:
        return f"inputs {_list(self.inputs)} and outputs {_list(self.outputs) or 'of its own'}"


def _in_order(
    found: tuple[TensorSpec, ...], before: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """Those ``found`` in the order of others, if they have the same names."""
    named = {one.name: one for one in found}
    if named.keys() != {one.name for one in before} or len(found) != len(before):
        return found
    return tuple(named[one.name] for one in before)


def alike(some: tuple[TensorSpec, ...], others: tuple[TensorSpec, ...]) -> bool:
    """Whether these tensors can be those, one by one."""
    return len(some) == len(others) and all(a.fits(b) for a, b in zip(some, others, strict=True))


@lru_cache(maxsize=256)
def fits(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    """Whether two shapes can be the same; -1 is any size, ``None`` any shape."""
    if one is None or other is None or one == other:
        return True
    sizes = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in sizes)


def tensor_specs(tables: Any, what: str) -> tuple[TensorSpec, ...]:
    """Specs from tables with ``name``, ``datatype`` and ``shape``; ``ConfigError`` if wrong."""
    try:
        return tuple(_spec(table) for table in tables or ())
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{what}: each is a table with name, datatype and shape: {error!r}"
        ) from error


def _spec(table: Mapping[str, Any]) -> TensorSpec:
    if extra := set(table) - {"name", "datatype", "shape", "optional", "parameters", "tags"}:
        raise ValueError(f"unknown key {min(extra)!r}")
    name, datatype, shape = str(table["name"]), table.get("datatype") or "", table.get("shape")
    if datatype and datatype not in DATATYPES:
        raise ValueError(f"datatype {datatype!r} is none of {', '.join(DATATYPES)}")
    sizes = None if shape is None else tuple(map(int, shape))
    if sizes and min(sizes) < -1:
        raise ValueError(f"shape {shape!r}: sizes are 0 or more, or -1 for any")
    return TensorSpec(name, datatype, sizes, bool(table.get("optional")))


def model_spec(
    name: str,
    metadata: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    batched: bool | None,
    *,
    optional: Collection[str] = (),
    overrule: bool = False,
) -> ModelSpec:
    """The model that ``metadata`` describes, if it has the expected inputs and outputs.

    :param inputs: all inputs that are expected; none: whatever the server says.
    :param outputs: those that are wanted; none: all.
    :param batched: ``None``: if the first dimension of every input is of any size.
    :param optional: names of inputs that may be left out.
    :param overrule: whether what is expected holds where the server says otherwise.
    """
    found = tuple(
        one._replace(optional=one.optional or one.name in optional)
        for one in tensor_specs(metadata.get("inputs"), f"{name}: the server's inputs")
    )
    if inputs and found and not overrule:
        expected, there = {one.name for one in inputs}, {one.name for one in found}
        if not there - {one.name for one in found if one.optional} <= expected <= there:
            raise ConfigError(f"{name}: the model has inputs {_list(found)}, not {_list(inputs)}")
    given = _merged(name, "input", inputs or found, found, overrule)
    if not given:
        raise ConfigError(
            f"{name}: the server does not say what inputs the model has: "
            "give inputs=[{name=..., datatype=..., shape=...}]"
        )
    if vague := [one for one in given if not one.datatype or one.shape is None]:
        raise ConfigError(f"{name}: give datatype and shape of input {vague[0].name!r}")
    found = tensor_specs(metadata.get("outputs"), f"{name}: the server's outputs")
    wanted = _merged(name, "output", outputs or found, found, overrule)
    shapes = [one.shape for one in given if one.shape is not None]
    if batched is None:
        batched = all(shape[:1] == (-1,) for shape in shapes)
    if not batched:
        return ModelSpec(given, wanted, False, 1)
    if not all(shapes):
        raise ConfigError(f"{name}: batched=True, but {_list(given)} has no first dimension")
    sizes = [shape[0] for shape in shapes if shape[0] != -1]
    return ModelSpec(given, wanted, True, min(sizes, default=None))


def _merged(
    name: str,
    kind: str,
    wanted: Iterable[TensorSpec],
    found: Sequence[TensorSpec],
    overrule: bool,
) -> tuple[TensorSpec, ...]:
    """Each one wanted, with what the server says of it; ``ConfigError`` if that differs."""
    merged = list[TensorSpec]()
    for one in wanted:
        said = next((other for other in found if other.name == one.name), None)
        if found and not overrule and (said is None or not one.fits(said)):
            there = _list(found) if said is None else str(said)
            raise ConfigError(f"{name}: expected {kind} {one}, the model has {there}")
        merged.append(one if said is None else one.over(said))
    return tuple(merged)


def _list(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))
