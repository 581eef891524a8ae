"""One device as it was asked for: what is needed to build its driver."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncinfer.config.permission import STEPS, refuse_code, refuse_declared
from asyncinfer.config.tables import check_keys
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.model import Model, resolve
from asyncinfer.registry import DriverFactory, import_object, load_driver

if TYPE_CHECKING:
    from asyncinfer.driver import Driver

__all__ = ("DeviceConfig",)


@dataclass(frozen=True)
class DeviceConfig:
    """One device that was asked for: enough to build its driver."""

    #: registered name of the driver
    driver: str
    #: the device's name, unique in its dispatcher
    name: str
    #: keyword arguments of the driver
    options: Mapping[str, Any] = field(default_factory=dict)
    #: where it was described, for messages
    source: str = "--devices"
    #: what people should know about it; empty for most
    note: str = ""
    #: ``max_wait`` and ``latency_target``, where they are given: see :class:`Driver`
    batching: Mapping[str, float] = field(default_factory=dict)
    #: names of what it shares with others, where they are given: see :class:`Driver`
    shares: frozenset[str] | None = None
    #: whether its options may name code to run: not if they are a file's, unless that was allowed
    allow_code: bool = True

    @property
    def model(self) -> str | None:
        """The model its options name."""
        model = self.options.get("model")
        return model if isinstance(model, str) else None

    def check(self) -> DriverFactory:
        """Return its driver's class once every option is one it takes."""
        factory = load_driver(self.driver)
        known = _parameters(factory)
        if known is not None:
            check_keys(self.options, known - {"name"}, f"{self.source}, options")
        if not self.allow_code:
            refuse_code(self.driver, self.options, self.source)
            refuse_declared(factory, self.options, self.source)
        return factory

    def build(self, model: Model | None = None) -> Driver[Any, Any]:
        """Make the driver, running ``model`` if it takes one and its options name no other.

        A model of its own is run with the steps around ``model`` where it brings none.
        """
        factory = self.check()
        options = dict(self.options)
        known = _parameters(factory)
        if known is not None and "model" in known:
            how = getattr(factory, "model_from", "module")
            named = self.model if how in ("module", "name") else None
            own = resolve(named) if named else None
            options = _with_model(options, own or model, model, known, how=how)
        try:
            inspect.signature(factory).bind(name=self.name, **options)
        except TypeError as error:
            hint = "; give --model" if "'model'" in str(error) else ""
            raise ConfigError(f"{self.source}: driver {self.driver!r}: {error}{hint}") from error
        try:
            driver = factory(name=self.name, **options)
            self._tell(driver)
            return driver
        except AsyncInferError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.source}: driver {self.driver!r}: {error}") from error

    def _tell(self, driver: Driver[Any, Any]) -> None:
        """Set what is given beside its options, and is an attribute of every driver."""
        given = {**self.batching} | ({} if self.shares is None else {"shares": self.shares})
        for attribute, value in given.items():
            try:
                setattr(driver, attribute, value)
            except AttributeError as error:
                text = f"driver {self.driver!r} does not let {attribute!r} be set: {error}"
                raise ConfigError(f"{self.source}: {text}") from error


def _with_model(
    options: dict[str, Any],
    model: Model | None,
    common: Model | None,
    known: set[str],
    *,
    how: str,
) -> dict[str, Any]:
    """Add the model, and the steps around it; ``common`` gives those that ``model`` lacks.

    ``how``: the driver takes a ``"module"``, the model's ``"name"``, the name it has at a
    ``"server"``, or finds it on its ``"device"``.
    """
    for key in STEPS:
        if isinstance(options.get(key), str):
            options[key] = import_object(options[key])
    if model is None:
        return options
    common = common or model
    built_in = model.builtin or common.builtin
    before, after = model if model.preprocess else common, model if model.postprocess else common
    given = {"warmup_input": built_in.example() if built_in else None}
    if "preprocess" not in options:
        given |= {"preprocess": before.preprocess, "collate": before.collate}
    if "postprocess" not in options:
        given |= {"postprocess": after.postprocess, "uncollate": after.uncollate}
    extra = {key: value for key, value in given.items() if value is not None and key in known}
    if how != "module":
        return extra | ({} if how == "device" else {"model": model.name}) | options
    # a process of its own loads the model there, and nothing is kept of it here
    apart = options.get("isolation") == "process"
    return extra | options | {"model": model.load if apart else model.loaded}


def _parameters(factory: DriverFactory) -> set[str] | None:
    """Names of the driver's arguments; ``None`` if it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind is not p.VAR_POSITIONAL}
