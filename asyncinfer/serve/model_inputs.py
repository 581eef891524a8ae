"""What a model takes: as a config says, or as the model itself tells its driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncinfer.config import DeviceConfig
from asyncinfer.errors import ConfigError
from asyncinfer.model import Model
from asyncinfer.registry import did_you_mean
from asyncinfer.serve.tensors import DATATYPES, Array, TensorSpec, datatype_of

__all__ = ("Input", "datatype_in", "in_order", "inputs_of", "shape_of", "told")

_KEYS = ("name", "datatype", "shape", "optional")
#: the size of an example where any will do
_ANY = 16


@dataclass(frozen=True)
class Input:
    """One of several inputs."""

    name: str
    datatype: str
    #: without the batch dimension; -1 for any size
    shape: tuple[int, ...]
    optional: bool = False
    #: sizes that are known to do
    sizes: tuple[int, ...] = ()
    #: whether it is all that a task is, rather than one in a mapping
    alone: bool = False

    def example(self) -> Array:
        """Zeros, for one task."""
        shape = self.sizes or [_ANY if size == -1 else size for size in self.shape]
        return np.zeros(shape, TensorSpec("", self.datatype, ()).dtype)


def inputs_of(value: Any, where: str) -> tuple[Input, ...]:
    """Those of a config's list of tables. ``ConfigError``."""
    if not (isinstance(value, list) and value and all(isinstance(one, dict) for one in value)):
        raise ConfigError(f"{where}: 'inputs' must be tables, one for each input")
    found = [_input(table, where) for table in value]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two of 'inputs' have the same name")
    if all(one.optional for one in found):
        raise ConfigError(f"{where}: one of 'inputs' at least must not be optional")
    return tuple(found)


def _input(table: Mapping[str, Any], where: str) -> Input:
    for key in table:
        if key not in _KEYS:
            raise ConfigError(
                f"{where}: unknown key {key!r} of an input; {did_you_mean(key, _KEYS)}"
            )
    name, optional = table.get("name"), table.get("optional", False)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: each of 'inputs' needs a name")
    if not isinstance(optional, bool):
        raise ConfigError(f"{where}: 'optional' of input {name!r} must be true or false")
    where = f"{where}, input {name!r}"
    shape = shape_of(table, where)
    if shape is None:
        raise ConfigError(f"{where}: give its shape, without the batch")
    return Input(name, datatype_in(table, where), shape, optional)


def shape_of(table: Mapping[str, Any], where: str) -> tuple[int, ...] | None:
    """The shape in a table, if there is one. ``ConfigError``."""
    shape = table.get("shape")
    good = isinstance(shape, list | None) and all(
        type(size) is int and (size > 0 or size == -1) for size in shape or ()
    )
    if not good:
        raise ConfigError(f"{where}: 'shape' must be sizes, or -1 for any, not {shape!r}")
    return None if shape is None else tuple(shape)


def datatype_in(table: Mapping[str, Any], where: str) -> str:
    """The datatype in a table, or the usual one. ``ConfigError``."""
    datatype = table.get("datatype", "FP32")
    if datatype not in DATATYPES:
        raise ConfigError(
            f"{where}: 'datatype' is {datatype!r}, which cannot be served; known: "
            f"{', '.join(DATATYPES)}. Take one of these, and convert it in the model: for "
            "bfloat16, FP32"
        )
    return str(datatype)


def told(model: Model, devices: Iterable[DeviceConfig]) -> tuple[Input, ...]:
    """What the driver of a device knows of the model's inputs; empty if that is one or unknown.

    A driver tells it by a static method ``model_inputs``, which is given the model. ``ConfigError``
    where it knows names and no more.
    """
    for facts in _known_to(model, devices):
        unknown = [fact["name"] for fact in facts if fact["shape"] is None]
        if len(facts) == 1 and unknown:
            return ()
        if unknown:
            raise ConfigError(_needed(model.name, facts))
        return tuple(_known(fact, model.name) for fact in facts)
    return ()


def in_order(
    inputs: Sequence[Input], model: Model, devices: Iterable[DeviceConfig]
) -> tuple[Input, ...]:
    """Those of a config in the order that the model itself has, where a driver knows it.

    A task that is a tuple then means the same to a client as to the model.
    """
    for facts in _known_to(model, devices):
        places = {fact["name"]: at for at, fact in enumerate(facts)}
        if all(one.name in places for one in inputs):
            return tuple(sorted(inputs, key=lambda one: places[one.name]))
    return tuple(inputs)


def _known_to(
    model: Model, devices: Iterable[DeviceConfig]
) -> Iterator[Sequence[Mapping[str, Any]]]:
    """What the drivers that can tell it know of the model's inputs."""
    for device in devices:
        ask = getattr(device.check(), "model_inputs", None)
        if ask is not None and (facts := ask(model.loaded)):
            yield facts


def _known(fact: Mapping[str, Any], model: str) -> Input:
    what = f"input {fact['name']!r} of model {model!r}"
    try:
        dtype = np.dtype(fact["dtype"])
    except TypeError:
        raise ConfigError(
            f"{what} is {fact['dtype']}, which cannot be served: convert it in the model"
        ) from None
    datatype = datatype_of(dtype, what)
    facts = (fact[key] for key in ("shape", "optional", "sizes", "alone"))
    return Input(fact["name"], datatype, *facts)


def _needed(model: str, facts: Iterable[Mapping[str, Any]]) -> str:
    names = ", ".join(f"{one['name']}{' (optional)' * one['optional']}" for one in facts)
    return (
        f"model {model!r} takes several inputs, {names}: give each a table "
        f"[[serve.models.{model!r}.inputs]] with name, datatype and shape, without the batch; "
        "leave out an optional one that is not to be served"
    )
