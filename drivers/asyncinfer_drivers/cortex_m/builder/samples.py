"""The model to build, and the samples that it is calibrated and judged with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    return str(getattr(model, "name", type(model).__name__))


def plain_name(name: str) -> str:
    """``name`` as a board and a file can have it: without slashes, spaces and the like."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_NAME] or "model"


def load_module(model: Any) -> nn.Module:
    """The module that ``model`` names or is, in evaluation mode on the CPU."""
    import torch

    from asyncinfer_drivers._torch.load import load

    if isinstance(model, str | Path) and str(model).endswith((".pt", ".pth", ".ts")):
        raise ConfigError(f"{model}: TorchScript cannot be built for a board; export it as .pt2")
    if isinstance(model, str | Path) and str(model).endswith((".onnx", ".tflite")):
        raise ConfigError(f"{model}: boards are built from PyTorch; export the module as .pt2")
    module = load(model, torch.device("cpu")).module
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
        samples = Samples(np.asarray(calibration, dtype=np.float32))
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
        return np.array(np.lib.format.open_memmap(path, mode="r"), dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no file of calibration inputs: {error}") from error
