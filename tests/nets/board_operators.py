"""Writes the table of operators of ``docs/firmware.md``: what each becomes, and what runs it.

    python tests/nets/board_operators.py docs/firmware.md

Each row is a small module that is converted, quantised and given its kernels as in a build.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bakenn
import numpy as np
import torch
from bakenn.backend.portable_c.selection import CBackendOptions, KernelPolicy, select_backend_plan
from bakenn.targets import resolve_target
from torch import nn
from torch.nn import functional

from asyncinfer_drivers.cortex_m.builder.compile import capture, compile_model

BEGIN, END = "<!-- operators: tests/nets/board_operators.py -->", "<!-- end of operators -->"

PICTURE, SEQUENCE, VECTOR = (8, 8, 8), (8, 16), (16,)


class Does(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def norm(module: nn.Module) -> nn.Module:
    """Its BatchNorms as if it were trained."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -1, 1)
    return module


#: what people write, what they do it to
ROWS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "`Conv2d`": (nn.Conv2d(8, 8, 3, padding=1), PICTURE),
    '`Conv2d(padding="same")`, even kernel; asymmetric and causal pads': (
        nn.Conv2d(8, 8, 4, padding="same"),
        PICTURE,
    ),
    "`Conv2d`, depthwise": (nn.Conv2d(8, 8, 3, groups=8), PICTURE),
    "`Conv2d`, 2 to 8 groups": (nn.Conv2d(8, 8, 3, groups=2), PICTURE),
    "`Conv2d`, more groups": (nn.Conv2d(20, 20, 3, groups=10), (20, 8, 8)),
    "`Conv1d`": (nn.Conv1d(8, 8, 3, padding=1), SEQUENCE),
    "`Conv1d`, depthwise": (nn.Conv1d(8, 8, 3, groups=8), SEQUENCE),
    "`ConvTranspose1d`, `ConvTranspose2d`": (nn.ConvTranspose2d(8, 8, 2, 2), PICTURE),
    "`Linear`, also after any view": (nn.Sequential(nn.Flatten(), nn.Linear(512, 8)), PICTURE),
    "`Linear` on `[time, channels]`": (nn.Linear(8, 8), (16, 8)),
    "`Linear` on `[channels, time]`": (nn.Linear(16, 4), SEQUENCE),
    "`BatchNorm` after a convolution or linear layer": (
        norm(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))),
        PICTURE,
    ),
    "`BatchNorm`, `(x - mean) / std` before one without padding": (
        norm(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))),
        PICTURE,
    ),
    "`BatchNorm`, `(x - mean) / std` elsewhere": (norm(nn.BatchNorm2d(8)), PICTURE),
    "`ReLU`, `ReLU6` after a layer": (nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), PICTURE),
    "`ReLU`, `ReLU6` elsewhere": (nn.Sequential(nn.Tanh(), nn.ReLU()), PICTURE),
    "`Sigmoid`, `SiLU`, `Hardswish`, `Hardsigmoid`": (nn.Hardswish(), PICTURE),
    "`Tanh`, `LeakyReLU`, `ELU`, `GELU`, `Hardtanh`, any function of one number": (
        nn.Tanh(),
        PICTURE,
    ),
    "`PReLU` with a slope for each channel": (
        Does(lambda x: functional.prelu(x, torch.linspace(0, 1, 8))),
        PICTURE,
    ),
    "`GLU`": (nn.GLU(1), PICTURE),
    "`MaxPool1d`, `MaxPool2d`, `AdaptiveMaxPool`, `amax`": (nn.MaxPool2d(2), PICTURE),
    "`AvgPool1d`, `AvgPool2d`, `AdaptiveAvgPool` whose sizes divide": (nn.AvgPool2d(2), PICTURE),
    "`AvgPool` that counts its padding": (nn.AvgPool2d(3, 2, 1), PICTURE),
    "`AdaptiveAvgPool(1)`, `mean`": (nn.AdaptiveAvgPool2d(1), PICTURE),
    "`+`, `-`": (Does(lambda x: x + torch.tanh(x)), PICTURE),
    "`*`, squeeze-and-excite": (Does(lambda x: x * x.mean((2, 3), keepdim=True)), PICTURE),
    "`cat`, `stack`": (Does(lambda x: torch.cat([x, torch.tanh(x)], 1)), PICTURE),
    "slices, `chunk`, `split`": (Does(lambda x: x[:, 2:5]), PICTURE),
    "`view`, `permute`, channel shuffle, before what has weights": (
        nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1)),
        PICTURE,
    ),
    "channel shuffle elsewhere": (Does(lambda x: x + functional.channel_shuffle(x, 2)), PICTURE),
    "`ZeroPad` before a convolution, alike on both sides": (
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3)),
        PICTURE,
    ),
    "`ReflectionPad`, `ReplicationPad`, `CircularPad`": (nn.ReflectionPad2d(1), PICTURE),
    "`PixelShuffle`": (nn.PixelShuffle(2), PICTURE),
    "`PixelUnshuffle`": (nn.PixelUnshuffle(2), PICTURE),
    "`Upsample`, `interpolate`: nearest, (bi)linear": (nn.Upsample(scale_factor=2), PICTURE),
    "`Softmax` of a vector": (nn.Softmax(1), VECTOR),
    "several results": (Does(lambda x: {"a": torch.tanh(x), "b": torch.exp(x)}), VECTOR),
}

_NAMES = {
    "ReshapeStep": "",
    "FlattenStep": "",
    "LUTActivationStep": "table of 256",
    "RequantizeStep": "another scale",
    "Conv2DStep": "convolution",
    "DepthwiseConv2DStep": "depthwise convolution",
    "ConvTranspose2DStep": "transposed convolution",
    "ReduceMeanStep": "mean",
    "ConcatenateStep": "concatenation",
    "ClampStep": "limits",
}


def steps(module: nn.Module, shape: tuple[int, ...]) -> Iterator[str]:
    """What it becomes, with what runs it."""
    torch.manual_seed(42)
    inputs = np.random.default_rng(42).normal(size=(2, *shape)).astype(np.float32)
    captured = capture(module.eval(), inputs[:1], "row")
    with tempfile.TemporaryDirectory() as folder:
        plan = compile_model(captured, inputs, "row", Path(folder)).plan
    options = CBackendOptions(
        kernel_policy=KernelPolicy.STATIC_PRIORITY,
        enable_cmsis_nn=True,
        target=resolve_target("cortex-m4"),
    )
    for step, chosen in zip(plan.steps, select_backend_plan(plan, options).selections, strict=True):
        kind = type(step).__name__
        if name := _NAMES.get(kind, kind.removesuffix("Step").removesuffix("2D").lower()):
            yield f"{name}{' *' if chosen.kernel_id.startswith('cmsis_nn') else ''}"


def table() -> str:
    """All rows."""
    lines = ["| operator | runs as; * with CMSIS-NN, else plain C |", "|---|---|"]
    for name, (module, shape) in ROWS.items():
        found = list(dict.fromkeys(steps(module, shape)))
        lines.append(f"| {name} | {', '.join(found) or 'nothing'} |")
    return "\n".join(lines)


def main(path: Path) -> None:
    """Write the table between its marks."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    assert bakenn
    main(Path(sys.argv[1]))
