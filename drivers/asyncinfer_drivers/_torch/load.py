"""From what a user gives as ``model`` to a module that is ready on its device."""

from __future__ import annotations

import inspect
import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.registry import (
    did_you_mean,
    import_object,
    is_model_file,
    load_model,
    model_names,
)
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._torch.copies import NoCopy, own_copy
from asyncinfer_drivers._torch.device import is_device_fault
from asyncinfer_drivers._torch.files import (
    HUB,
    Kind,
    exported_on,
    kind_of,
    reason_in_log,
    written_by,
)

__all__ = ("Loaded", "load")

#: torch's layers that give other answers in training mode; torch leaves some others in it by itself
_TRAINED_OTHERWISE = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)

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
    model = _made(_imported(model))
    if isinstance(model, str | Path):
        return Loaded(_from_file(Path(model).expanduser(), device))
    if isinstance(model, nn.Module):
        return Loaded(_ready(model, device))
    if hasattr(model, "build"):
        module = _own(_call(model.build, model.name), device)
        batch_steps = (getattr(model, step, None) for step in ("collate", "uncollate"))
        steps = Steps(model.preprocess, model.postprocess, *batch_steps)
        return Loaded(module, steps, getattr(model, "example", None))
    raise ConfigError(
        f"model is a {type(model).__name__}: give an nn.Module, a function that returns one, "
        "a TorchScript or .pt2 file, 'module:function', or a built-in model's name"
    )


def _imported(model: Any) -> Any:
    """What a name or ``module:function`` stands for; all else, files too, as it is."""
    if isinstance(model, str) and not is_model_file(model) and not Path(model).exists():
        return import_object(model) if ":" in model else _named(model)
    return model


def _made(model: Any) -> Any:
    """What a function returns; all else as it is."""
    if callable(model) and not isinstance(model, nn.Module):
        return _call(model, getattr(model, "__qualname__", repr(model)))
    return model


def _named(name: str) -> Any:
    if name not in model_names():
        hint = did_you_mean(name, model_names())
        raise ConfigError(f"unknown model {name!r}; {hint}; {HUB}")
    return load_model(name)


def _call(factory: Callable[[], Any], name: str) -> Any:
    needed = _arguments(factory)
    if needed:
        raise ConfigError(
            f"model {name} needs arguments ({', '.join(needed)}): call it yourself and give the "
            "module, or give a function without arguments that does; a function that computes "
            "goes into the forward of an nn.Module"
        )
    try:
        return factory()
    except Exception as error:
        if isinstance(error, AsyncInferError) or is_device_fault(error):
            raise
        raise ConfigError(f"model {name} failed: {type(error).__name__}: {error}") from error


def _arguments(factory: Callable[..., Any]) -> list[str]:
    """The arguments that it cannot be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # it does not tell
        return []
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in various]


def _ready(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself where nothing about it has to change, else a copy."""
    here = _is_on(module, device)
    if here and not any(part.training for part in module.modules()):
        return module
    _warn_of_training_parts(module)
    try:
        return _own(own_copy(module, share=False), device)
    except NoCopy as error:
        change = "put it in evaluation mode with eval()" if here else f"move it to {device}"
        raise ConfigError(
            f"the model cannot be copied ({error}): {change}, or give a function that makes it"
        ) from error


def _warn_of_training_parts(module: nn.Module) -> None:
    """Say which layers work otherwise in training mode, if they are in it and the model is not."""
    named = module.named_modules() if not module.training else ()
    parts = [name for name, part in named if part.training and isinstance(part, _TRAINED_OTHERWISE)]
    if parts:
        logger.warning(
            "%s is in training mode in a model that is not: it is run in evaluation mode, as the "
            "rest; its answers may differ from those of the model as it was given",
            ", ".join(parts[:3]) + (" ..." if parts[3:] else ""),
        )


def _is_on(module: nn.Module, device: torch.device) -> bool:
    return all(_same(each.device, device) for each in (*module.parameters(), *module.buffers()))


def _same(one: torch.device, other: torch.device) -> bool:
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def _own(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module that nobody else uses, and put it in evaluation mode."""
    if not _is_on(module, device):  # moving a scripted module warns, wherever it is
        module = module.to(device)
    try:
        return module.eval()
    except NotImplementedError:  # from torch.export: it has no modes
        return module


def _from_file(path: Path, device: torch.device) -> nn.Module:
    kind = kind_of(path)
    _tell(path, kind)
    try:
        if kind == "torch.export":
            return _own(_exported(path, device), device)
        script = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        return _own(script, device)
    except (RuntimeError, ValueError, KeyError) as error:
        if is_device_fault(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{path} is no {kind} file that this torch can load: {first}; save it again with "
            f"torch {torch.__version__}, or install the version that wrote it"
        ) from error


def _tell(path: Path, kind: Kind) -> None:
    """Warn, once for each file: torch has no way to read a whole model as mere data."""
    if path not in _told:
        _told.add(path)
        logger.warning("%s is a %s file, which is a program: load only those you trust", path, kind)


def _exported(path: Path, device: torch.device) -> nn.Module:
    elsewhere = exported_on(path) - {device.type}
    if "cuda" in elsewhere and not torch.cuda.is_available():
        raise ConfigError(
            f"{path} was exported on a GPU, and there is none: export it on the CPU, "
            "torch.export.export(module.cpu(), ...)"
        )
    program = _program(path)
    if elsewhere or device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()


def _program(path: Path) -> torch.export.ExportedProgram:
    with _ONE_AT_A_TIME, reason_in_log() as reason:
        try:
            if path.suffix == ".pt2":
                return torch.export.load(path)
            with path.open("rb") as file:  # by its name torch would doubt it
                return torch.export.load(io.BytesIO(file.read()))
        except (RuntimeError, ValueError, KeyError) as error:
            if reason.error is None or is_device_fault(error):
                raise
            by = written_by(path)
            raise ValueError(f"{reason.error}{'; ' if by else ''}{by}") from reason.error
