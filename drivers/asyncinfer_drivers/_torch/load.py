"""From what a user gives as ``model`` to a module that is ready on its device."""

from __future__ import annotations

import copy
import logging
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.registry import import_object, is_model_file, load_model
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._torch.device import is_device_fault

__all__ = ("Loaded", "load")

logger = logging.getLogger("asyncinfer.torch")

#: torch.export.load keeps its state in a global variable, and each driver loads in its own thread
_ONE_AT_A_TIME = threading.Lock()

#: files that were warned about: they are programs
_told = set[Path]()


@dataclass
class Loaded:
    """A module in evaluation mode on its device, and what a built-in model brings with it."""

    module: nn.Module
    steps: Steps = field(default_factory=Steps)
    #: makes an input to warm up with
    example: Callable[[], Any] | None = None


def load(model: Any, device: torch.device) -> Loaded:
    """Load ``model`` (see ``TorchDriver``) onto ``device``.

    Raises ``ConfigError`` if that is impossible; errors of the accelerator pass.
    """
    if isinstance(model, str) and not is_model_file(model):
        model = import_object(model) if ":" in model else load_model(model)
    if isinstance(model, str | Path):
        return Loaded(_from_file(Path(model).expanduser(), device))
    if callable(model) and not isinstance(model, nn.Module):
        model = _call(model, getattr(model, "__qualname__", repr(model)))
    if isinstance(model, nn.Module):
        return Loaded(_shared(model, device))
    if hasattr(model, "build"):
        module = _own(_call(model.build, model.name), device)
        batch_steps = (getattr(model, step, None) for step in ("collate", "uncollate"))
        steps = Steps(model.preprocess, model.postprocess, *batch_steps)
        return Loaded(module, steps, getattr(model, "example", None))
    raise ConfigError(
        f"model is a {type(model).__name__}: give an nn.Module, a function that returns one, "
        "a TorchScript or .pt2 file, 'module:function', or a built-in model's name"
    )


def _call(factory: Callable[[], Any], name: str) -> Any:
    try:
        return factory()
    except Exception as error:
        if isinstance(error, AsyncInferError) or is_device_fault(error):
            raise
        raise ConfigError(f"model {name} failed: {type(error).__name__}: {error}") from error


def _shared(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself where nothing about it has to change, else a copy of its own."""
    tensors = [*module.parameters(), *module.buffers()]
    here = all(_same(tensor.device, device) for tensor in tensors)
    if here and not any(part.training for part in module.modules()):
        return module
    return _own(copy.deepcopy(module), device)


def _same(one: torch.device, other: torch.device) -> bool:
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def _own(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module that nobody else uses, and put it in evaluation mode."""
    module = module.to(device)
    try:
        return module.eval()
    except NotImplementedError:  # from torch.export: it has no modes
        return module


def _from_file(path: Path, device: torch.device) -> nn.Module:
    if not path.is_file():
        raise ConfigError(f"no such model file: {path}")
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{path} is neither a TorchScript nor a .pt2 file")
    _tell(path)
    try:
        if path.suffix == ".pt2":
            return _own(_exported(path, device), device)
        script = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        return _own(script, device)
    except (RuntimeError, ValueError, KeyError) as error:
        if is_device_fault(error):
            raise
        kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
        hint = "; weights alone need their module: give 'module:function'"
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{path} is no {kind} file: {first}{hint}") from error


def _tell(path: Path) -> None:
    """Warn, once for each file: torch has no way to read a whole model as mere data."""
    if path not in _told:
        _told.add(path)
        kind = "a torch.export" if path.suffix == ".pt2" else "a TorchScript"
        logger.warning("%s is %s file, which is a program: load only those you trust", path, kind)


def _exported(path: Path, device: torch.device) -> nn.Module:
    with _ONE_AT_A_TIME:
        program = torch.export.load(path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()
