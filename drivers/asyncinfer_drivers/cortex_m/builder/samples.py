"""The model to build, and the samples that it is calibrated and judged with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer.errors import ConfigError
from asyncinfer.registry import load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ("Samples", "load_module", "load_samples", "model_name", "plain_name")

#: characters of a model's name that a board says
_LONGEST_NAME = 64
#: suffixes of files that hold a model
_MODEL_FILES = (".pt2", ".pt", ".pth", ".ts", ".onnx", ".tflite", ".safetensors")


@dataclass(frozen=True)
class Samples:
    """Float inputs ``[n, ...]`` as the module takes them, and what should come out."""

    inputs: NDArray[np.float32]
    targets: Sequence[Any] | None = None
    postprocess: Callable[[Any], Any] | None = None

    def some(self, count: int) -> NDArray[np.float32]:
        """Up to ``count`` of them, spread over the whole set."""
        picked = np.linspace(0, len(self.inputs) - 1, min(count, len(self.inputs)))
        chosen: NDArray[np.float32] = self.inputs[picked.round().astype(int)]
        return chosen

    def accuracy(self, outputs: NDArray[np.float32]) -> float | None:
        """The share of ``outputs`` that are right, if that is known."""
        if self.targets is None or self.postprocess is None:
            return None
        import torch

        pairs = zip(torch.from_numpy(outputs), self.targets, strict=True)
        right = sum(bool(self.postprocess(output) == target) for output, target in pairs)
        return right / len(outputs)


def model_name(model: Any) -> str:
    """A short name for the model's id and for messages."""
    if isinstance(model, Path) or (isinstance(model, str) and model.endswith(".pt2")):
        return Path(model).stem
    if isinstance(model, str):
        return model.rpartition(":")[2]
    name = getattr(model, "name", None)  # of a module it may be a layer
    return name if isinstance(name, str) else type(model).__name__


def plain_name(name: str) -> str:
    """``name`` as a board and a file can have it: without slashes, spaces and the like."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_NAME] or "model"


def load_module(model: Any) -> nn.Module:
    """The module that ``model`` names or is, in evaluation mode on the CPU."""
    import torch

    from asyncinfer_drivers._torch.copies import NoCopy, own_copy
    from asyncinfer_drivers._torch.load import load

    if isinstance(model, str | Path) and str(model).endswith((".pt", ".pth", ".ts")):
        raise ConfigError(
            f"{model}: what torch.jit or torch.save wrote cannot be built for a board; "
            "export the module as .pt2"
        )
    if isinstance(model, str | Path) and str(model).endswith((".onnx", ".tflite")):
        raise ConfigError(f"{model}: boards are built from PyTorch; export the module as .pt2")
    try:
        module = load(model, torch.device("cpu")).module
    except NotImplementedError as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"model {model_name(model)!r}: {first}: load its weights first"
        ) from error
    if any(map(torch.nn.parameter.is_lazy, module.parameters())):
        raise ConfigError(
            f"model {model_name(model)!r} has lazy layers: call it once, with an input"
        )
    if module is model:  # calls may change it
        with suppress(NoCopy):
            module = own_copy(module, share=False)
    for part in module.modules():
        part.training = False  # a .pt2 file's module has no eval()
    return module


def load_samples(calibration: Any) -> Samples:
    """From an array, a ``.npy`` file, or the name of a built-in model with inputs of its own."""
    if isinstance(calibration, str | Path) and (text := _no_inputs(str(calibration))):
        raise ConfigError(f"calibration takes a .npy file of inputs [n, ...], {text}")
    if isinstance(calibration, str) and not calibration.endswith(".npy"):
        samples = _of_model(load_model(calibration))
    elif isinstance(calibration, str | Path):
        samples = Samples(_read(Path(calibration)))
    else:
        samples = Samples(_numbers(calibration))
    if samples.inputs.ndim < 2 or len(samples.inputs) == 0:
        raise ConfigError(
            "calibration takes an array [n, ...] of at least one input, "
            f"not one of shape {list(samples.inputs.shape)}"
        )
    if not np.isfinite(samples.inputs).all():
        raise ConfigError("the calibration inputs hold values that are not finite")
    if not samples.inputs.any():
        raise ConfigError(
            "the calibration inputs are all zero: give inputs as the model will see, which tell "
            "how large its numbers become"
        )
    return samples


def _no_inputs(name: str) -> str:
    """Why a file of this name holds no calibration inputs; empty if it may be a model's name."""
    suffix = Path(name).suffix.lower()
    if suffix == ".npz":
        return f"and {name} is an archive: save one of its arrays, np.save('inputs.npy', array)"
    if suffix in _MODEL_FILES:
        return f"and {name} is a model: give --calibration (calibration=) inputs for it"
    if suffix != ".npy" and (":" in name or Path(name).is_file()):
        return f"or a built-in model's name, not {name!r}"
    return ""


def _of_model(model: Any) -> Samples:
    own = model.inputs()
    inputs = np.stack([np.asarray(model.preprocess(item), dtype=np.float32) for item in own.items])
    return Samples(inputs, own.targets, model.postprocess)


def _read(path: Path) -> NDArray[np.float32]:
    try:
        # not np.load: it reads archives and pickles too, and believes any size
        return _as_float32(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no file of calibration inputs: {error}") from error


def _numbers(given: Any) -> NDArray[np.float32]:
    """An array, a tensor, or a list of such."""
    arrays = isinstance(given, list | tuple) or hasattr(given, "__array__")
    if given is None or not arrays:
        raise ConfigError(
            f"calibration takes an array [n, ...] of inputs, not a {type(given).__name__}: stack "
            "some of what it gives, np.stack or torch.stack"
        )
    try:
        parts = [_plain(part) for part in given] if isinstance(given, list | tuple) else None
        return _as_float32(np.asarray(_plain(given) if parts is None else parts))
    except (ValueError, TypeError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"calibration takes an array [n, ...] of inputs: {first}") from error


def _plain(part: Any) -> Any:
    """A tensor without its gradient, and of a type that numpy has; all else as it is."""
    if not hasattr(part, "detach"):
        return part
    tensor = part.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype.kind == "c":
        raise ValueError("complex numbers, of which only the real part would be taken")
    with np.errstate(over="ignore"):  # what is too large is refused as not finite
        return np.array(array, dtype=np.float32)
