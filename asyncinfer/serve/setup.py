"""From a config to the models that are served."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from asyncinfer.config import Config, DeviceConfig
from asyncinfer.errors import ConfigError
from asyncinfer.model import MODEL_FILES, Model, resolve
from asyncinfer.options import Timeouts
from asyncinfer.registry import did_you_mean
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.model_inputs import (
    Input,
    datatype_in,
    in_order,
    inputs_of,
    shape_of,
    told,
)
from asyncinfer.serve.served import Served
from asyncinfer.serve.tensors import Array, TensorSpec

__all__ = ("limits_of", "models_of", "name_of")

#: of devices, which are the client's business here: it sends what ``preprocess`` would make
_STEPS = ("preprocess", "postprocess", "collate", "uncollate", "warmup_input")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_MODELS = "models"
_NAME_OF_SERVER = "name"


@dataclass(frozen=True)
class ModelOptions:
    """One table of ``[serve.models]``."""

    name: str | None = None
    shape: tuple[int, ...] | None = None
    datatype: str = "FP32"
    #: of a model that takes several; ``shape`` and ``datatype`` are for one that takes one
    inputs: tuple[Input, ...] = ()

    @classmethod
    def of(cls, table: Any, where: str) -> ModelOptions:
        """Check a table; ``ConfigError`` says what is wrong with it."""
        if not isinstance(table, dict):
            raise ConfigError(f"{where} must be a table")
        for key in table:
            known = ("name", "shape", "datatype", "inputs")
            if key not in known:
                raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(key, known)}")
        inputs = inputs_of(table["inputs"], where) if "inputs" in table else ()
        if inputs and ("shape" in table or "datatype" in table):
            raise ConfigError(f"{where}: 'shape' and 'datatype' go into each of 'inputs'")
        shape = shape_of(table, where)
        return cls(table.get("name"), shape, datatype_in(table, where), inputs)


def limits_of(config: Config) -> Limits:
    """The limits in the ``[serve]`` table."""
    others = (_MODELS, _NAME_OF_SERVER)
    return Limits.of({key: value for key, value in config.serve.items() if key not in others})


def name_of(config: Config) -> str:
    """What the server calls itself in its metadata. Raises ``ConfigError``."""
    name = config.serve.get(_NAME_OF_SERVER, "asyncinfer")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"[serve]: 'name' must be a text, not {name!r}")
    return name


def models_of(
    config: Config, devices: Iterable[DeviceConfig], model: str | None, limits: Limits
) -> list[Served]:
    """One for each distinct model of the devices; ``model`` for those that name none.

    Raises ``ConfigError``.
    """
    by_model: dict[str, list[DeviceConfig]] = {}
    for device in devices:
        name = device.model or model
        if name is None:
            raise ConfigError(f"{device.source}: no model; give --model")
        by_model.setdefault(name, []).append(device)
    tables = config.serve.get(_MODELS, {})
    if not isinstance(tables, dict):
        raise ConfigError("[serve.models] must be a table of tables, one a model")
    for name in tables:
        if name not in by_model:
            raise ConfigError(
                f"[serve.models]: no device has {name!r}; {did_you_mean(name, by_model)}"
            )
    options = {"queue_size": limits.max_rows, "timeout": Timeouts(total=limits.request_timeout)}
    options |= config.dispatcher
    found = [
        _served(name, own, ModelOptions.of(tables.get(name, {}), f"[serve.models.{name}]"), options)
        for name, own in by_model.items()
    ]
    names = [served.name for served in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name!r}: give one a name in [serve.models]")
    return found


def _served(
    text: str, devices: Iterable[DeviceConfig], given: ModelOptions, options: Mapping[str, Any]
) -> Served:
    model = resolve(text)
    example: Any
    shape: Any
    inputs = given.inputs or _told(model, given, devices)
    if len(given.inputs) > 1:
        inputs = in_order(inputs, model, devices)
    if len(inputs) == 1 and inputs[0].alone:
        example, shape, inputs = inputs[0].example(), inputs[0].shape, ()
    elif inputs:
        example = {one.name: one.example() for one in inputs}
        shape = {one.name: one.shape for one in inputs}
    else:
        example = _example(model, given)
        shape = given.shape or example.shape
    name = given.name or _short(text)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"model {text!r} cannot be served as {name!r}: name it in [serve.models]")
    raw = Model(model.name, model.load, builtin=_only_example(example))
    drivers = [_plain(device).build(raw) for device in devices]
    platform = "_".join(sorted({device.driver for device in devices}))
    optional = frozenset(one.name for one in inputs if one.optional)
    return Served(name, drivers, options, example, shape, platform, optional)


def _told(model: Model, given: ModelOptions, devices: Iterable[DeviceConfig]) -> tuple[Input, ...]:
    """The inputs that the model itself tells of, where neither it nor the config has an example."""
    if model.builtin is not None or given.shape is not None:
        return ()
    return told(model, devices)


def _example(model: Model, given: ModelOptions) -> Array:
    """One input as the model takes it: its own, or zeros of the shape that was given."""
    if model.builtin is not None:
        before: Callable[[Any], Any] = model.preprocess or (lambda item: item)
        example = np.ascontiguousarray(np.asarray(before(model.builtin.example())))
        shape = given.shape or example.shape
        sizes = zip(shape, example.shape, strict=False)
        if len(shape) != example.ndim or any(a not in (-1, b) for a, b in sizes):
            raise ConfigError(
                f"model {model.name!r} takes {list(example.shape)}, not {list(shape)}"
            )
        return example
    if given.shape is None or -1 in given.shape:
        raise ConfigError(
            f"the input of model {model.name!r} is not known: give it a shape, without the batch, "
            f"in [serve.models.{model.name!r}]"
        )
    return np.zeros(given.shape, TensorSpec("", given.datatype, ()).dtype)


def _only_example(example: Array) -> Any:
    """A built-in model as far as a config asks one: the input to warm up with."""
    return SimpleNamespace(example=lambda: example)


def _plain(device: DeviceConfig) -> DeviceConfig:
    """The device without steps of its own, and with batches."""
    options = {key: value for key, value in device.options.items() if key not in (*_STEPS, "model")}
    if device.driver == "torch":
        options.setdefault("max_batch", "auto")
    return replace(device, options=options)


def _short(text: str) -> str:
    """The name under which a model is served: a file's, a factory's, or its own."""
    if text.endswith(MODEL_FILES):
        return Path(text).stem
    return text.rpartition(":")[2]
