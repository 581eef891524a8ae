"""What a built-in model is: a module, the steps around it, and inputs to try it on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from asyncinfer.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ("Files", "InputSet", "Model", "need")


@dataclass(frozen=True)
class InputSet:
    """Inputs of one model; ``names``, ``items`` and ``targets`` go together."""

    #: what to call each input
    names: Sequence[str]
    #: the inputs, as ``Model.preprocess`` takes them; may be loaded when indexed
    items: Sequence[Any]
    #: what ``Model.postprocess`` should return for each, where that is known
    targets: Sequence[Any] | None = None


@dataclass(frozen=True)
class Model:
    """A model with everything needed to run it. Creating one imports and loads nothing."""

    #: the name it is registered under
    name: str
    #: one line for people
    description: str
    #: loads the weights; returns a new module in evaluation mode on the CPU
    build: Callable[[], nn.Module]
    #: from one item, or a file's ``Path``, to the tensor of one task (no batch dimension);
    #: ``InputError`` if the item is none
    preprocess: Callable[[Any], Any]
    #: from one row of the module's output to the result
    postprocess: Callable[[Any], Any]
    #: the model's own inputs
    inputs: Callable[[], InputSet]
    #: reads one image file into an item; ``InputError`` if it is none
    decode: Callable[[Path], Any]
    #: makes an item to warm up and calibrate with, without reading files
    example: Callable[[], Any]
    #: ``preprocess`` for many items at once: to a new tensor ``[n, ...]``, or any error
    collate: Callable[[Sequence[Any]], Any] | None = None
    #: ``postprocess`` for all of the module's output at once
    uncollate: Callable[[Any], Sequence[Any]] | None = None
    #: what ``preprocess`` makes, without the batch, where it varies: -1 is any size
    shape: tuple[int, ...] | None = None


class Files(Sequence[Any]):
    """Items that are read from their files when indexed, anew each time."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Any]) -> None:
        self._paths = paths
        self._read = read

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Files(self._paths[index], self._read)
        return self._read(self._paths[index])


def need(module: str) -> Any:
    """Import an optional ``module``, or raise ``ConfigError`` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'asyncinfer[models]'"
        ) from error
