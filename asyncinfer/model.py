"""Models: what a driver runs, with the steps before and after it, named by one string.

The protocols are structural, so a package that offers a built-in model need not import them.
``resolve`` says which strings name a model, on the command line and in a config file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, cast

from asyncinfer.errors import ConfigError, InputError
from asyncinfer.registry import (
    MODEL_FILES,
    did_you_mean,
    import_object,
    load_model,
    model_names,
)

__all__ = (
    "MODEL_FILES",
    "BuiltinModel",
    "InputSet",
    "Model",
    "builtin",
    "import_object",
    "resolve",
)


class InputSet(Protocol):
    """Inputs that come with a model, all of one kind."""

    @property
    def names(self) -> Sequence[str]:
        """What to call each input, in order."""
        ...

    @property
    def items(self) -> Sequence[Any]:
        """The inputs, as ``preprocess`` takes them."""
        ...

    @property
    def targets(self) -> Sequence[Any] | None:
        """The right output of each input, as ``postprocess`` returns it; ``None`` if unknown."""
        ...


class BuiltinModel(Protocol):
    """A model with all that is needed to run it: weights, the steps around it, and inputs."""

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def description(self) -> str:
        """One line for people."""
        ...

    @property
    def preprocess(self) -> Callable[[Any], Any]:
        """From one input to what the model takes; runs in the driver's worker thread."""
        ...

    @property
    def postprocess(self) -> Callable[[Any], Any]:
        """From one raw output to the result; runs in the driver's worker thread."""
        ...

    def build(self) -> Any:
        """Load the weights and return the module."""
        ...

    def inputs(self) -> InputSet:
        """The model's own inputs."""
        ...

    def decode(self, path: Path) -> Any:
        """Read one file into an input. Raises ``InputError`` if the file is not one."""
        ...

    def example(self) -> Any:
        """An input to warm up with, made without reading files."""
        ...


@dataclass
class Model:
    """A model that was asked for by name, loaded when first needed and then shared."""

    #: what the user wrote
    name: str
    #: returns what the driver takes as ``model``: a module, or the path of a file
    load: Callable[[], Any]
    #: from an input, or the path of a file, to what the model takes
    preprocess: Callable[[Any], Any] | None = None
    #: from a raw output to the result
    postprocess: Callable[[Any], Any] | None = None
    #: from several inputs, or paths of files, to what the model takes for all of them at once
    collate: Callable[[Sequence[Any]], Any] | None = None
    #: from the raw output for several inputs to their results
    uncollate: Callable[[Any], Sequence[Any]] | None = None
    #: the built-in model behind it, if it is one
    builtin: BuiltinModel | None = None

    @cached_property
    def loaded(self) -> Any:
        """What ``load`` returns, loaded once: the same object each time."""
        return self.load()

    @cached_property
    def inputs(self) -> InputSet | None:
        """The input set that comes with a built-in model."""
        return self.builtin.inputs() if self.builtin else None


class Deferred:
    """One item of an input set, fetched only when it is run, since it may have to be read."""

    __slots__ = ("_index", "_inputs")

    def __init__(self, inputs: InputSet, index: int) -> None:
        self._inputs = inputs
        self._index = index

    def __str__(self) -> str:
        return str(self._inputs.names[self._index])

    def __reduce__(self) -> tuple[Any, ...]:
        return _sent, (self.fetch(),)  # sends the item to another process, not the whole set

    def fetch(self) -> Any:
        """The item itself."""
        return self._inputs.items[self._index]


def _sent(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class Decoding:
    """A ``preprocess`` that also takes paths and ``Deferred``: the worker thread reads the files.

    A file that cannot be read raises an ``InputError`` that names it.
    """

    #: from the path of a file to an input
    decode: Callable[[Path], Any]
    #: from an input to what the model takes
    then: Callable[[Any], Any] | None = None

    def around(self, step: Callable[[Any], Any]) -> Decoding:
        """The same before ``step``, which a model brings that was known to a driver only."""
        return self if self.then is not None else Decoding(self.decode, step)

    def __call__(self, item: Any) -> Any:
        """Decode ``item`` if it is a path, then preprocess it."""
        item = self._fetched(item)
        return item if self.then is None else self.then(item)

    def before(self, collate: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
        """Make a ``collate`` that also takes paths and ``Deferred``."""
        return partial(self._collated, collate)  # no lambda: it may be sent to another process

    def _collated(self, collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
        return collate([self._fetched(item) for item in items])

    def _fetched(self, item: Any) -> Any:
        if isinstance(item, Path):
            return self._read(item)
        return item.fetch() if isinstance(item, Deferred) else item

    def _read(self, path: Path) -> Any:
        try:
            return self.decode(path)
        except InputError:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"{path}: {reason}") from error


def resolve(text: str) -> Model:
    """The model ``text`` names: a built-in one, a ``.pt2``/TorchScript file, or ``module:factory``.

    Raises ``ConfigError`` with the nearest known name, or with what is wrong with the file.
    """
    if text.endswith(MODEL_FILES):
        return Model(text, _file(text))
    if ":" in text:
        return Model(text, _factory(text))
    if text not in model_names():
        also = f"or a file ({', '.join(MODEL_FILES)}), or module:factory"
        raise ConfigError(f"unknown model {text!r}; {did_you_mean(text, model_names())}, {also}")
    found = builtin(text)
    decoding = Decoding(found.decode, found.preprocess)
    collate, uncollate = (getattr(found, step, None) for step in ("collate", "uncollate"))
    collate = decoding.before(collate) if collate else None
    return Model(text, found.build, decoding, found.postprocess, collate, uncollate, found)


def builtin(name: str) -> BuiltinModel:
    """The built-in model registered as ``name``. Raises ``ConfigError`` if it is not complete."""
    found = load_model(name)
    needed = (
        "name",
        "description",
        "preprocess",
        "postprocess",
        "build",
        "inputs",
        "decode",
        "example",
    )
    missing = [part for part in needed if not hasattr(found, part)]
    if missing:
        raise ConfigError(f"model {name!r} is not complete: it lacks {', '.join(missing)}")
    return cast("BuiltinModel", found)


def _file(text: str) -> Callable[[], str]:
    path = Path(text).expanduser()
    if not path.is_file():
        raise ConfigError(f"no such model file: {text}")
    return partial(os.fspath, path)


def _factory(text: str) -> Callable[[], Any]:
    if not callable(import_object(text)):
        raise ConfigError(f"{text!r} is no function or class that makes a model")
    return partial(_made, text)  # no function of its own: it may be sent to another process


def _made(text: str) -> Any:
    try:
        return import_object(text)()
    except Exception as error:
        raise ConfigError(f"{text!r} failed: {type(error).__name__}: {error}") from error
