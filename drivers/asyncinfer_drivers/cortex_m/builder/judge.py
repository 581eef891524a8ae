"""How often a model is right: before, in float, and after, in the board's integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.builder.reference import Int8
from asyncinfer_drivers.cortex_m.builder.samples import Samples
from asyncinfer_drivers.cortex_m.specs import TensorSpec
from asyncinfer_drivers.cortex_m.tensors import InputCodec, OutputCodec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ("encode", "float_accuracy", "int8_accuracy", "quantize")

_BATCH = 256


def float_accuracy(module: nn.Module, samples: Samples) -> float | None:
    """Of the module itself; ``None`` if the right results are not known."""
    if samples.targets is None:
        return None
    import torch

    size = 1 if isinstance(module, torch.fx.GraphModule) else _BATCH  # from a file: fixed batch
    with torch.inference_mode():
        whole = torch.from_numpy(samples.inputs)
        starts = range(0, len(whole), size)
        outputs = torch.cat([module(whole[start : start + size]) for start in starts])
    return samples.accuracy(outputs.numpy())


def int8_accuracy(firmware: Firmware, samples: Samples) -> float | None:
    """Of the integer reference, which boards equal bit for bit."""
    if samples.targets is None:
        return None
    numbers = firmware.reference(quantize(firmware.input, samples))
    decoded = OutputCodec(firmware.output).decode(numbers.tobytes(), len(numbers))
    return samples.accuracy(np.stack(decoded))


def quantize(spec: TensorSpec, samples: Samples) -> Int8:
    """The samples as the board takes them: int8, in its order of axes."""
    return encode(spec, samples.inputs)


def encode(spec: TensorSpec, inputs: NDArray[np.float32]) -> Int8:
    """``inputs``, as the module takes them, as the board does: int8, in its order of axes."""
    codec = InputCodec(spec)
    data = b"".join(map(codec.encode, inputs))
    return np.frombuffer(data, dtype=np.int8).reshape(-1, *spec.shape)
