"""Writes what every peer serves: ``prepare.py NAME FOLDER WORKERS``.

``model.pt`` is TorchScript, frozen (which folds batch norms into convolutions), channels last:
uint8 images in, labels out, so that no peer has any other step to do. ``images.bin`` holds images
one after another, ``meta.json`` their shape and labels. Two nets: ``digits``, which costs next to
nothing, so that the serving shows; and ``lite0``, EfficientNet-Lite0 with its trained weights on
64x64 pictures, where computing shows.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from asyncinfer_drivers.models import load

SEED, BATCH, PICTURES, SIDE = 42, 32, 128, 64
#: the best two logits of a picture are at least so far apart: rounding changes no label
MARGIN = 0.05


class Served(nn.Module):
    """From bytes to labels."""

    def __init__(self, net: nn.Module, offset: float, scale: float) -> None:
        super().__init__()
        self.net, self.offset, self.scale = net, offset, scale

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        inputs = (images.to(torch.float32) - self.offset) / self.scale
        return self.net(inputs.contiguous(memory_format=torch.channels_last))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(images).argmax(1)


def digits() -> tuple[Served, torch.Tensor]:
    """All of ``load_digits``."""
    found = load("digits")
    pictures = np.stack(found.inputs().items).astype(np.uint8)
    return Served(found.build(), 0.0, 16.0), torch.from_numpy(pictures).unsqueeze(1)


def lite0() -> tuple[Served, torch.Tensor]:
    """Squares cut out of real pictures at random."""
    from PIL import Image

    found = load("efficientnet_lite0")
    sources = [Image.fromarray(item).convert("RGB") for item in found.inputs().items]
    rng = np.random.default_rng(SEED)
    pictures = []
    for number in range(2 * PICTURES):
        source = sources[number % len(sources)]
        side = int(rng.integers(min(source.size) // 2, min(source.size) + 1))
        left, top = (int(rng.integers(length - side + 1)) for length in source.size)
        box = (left, top, left + side, top + side)
        small = source.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        pictures.append(np.asarray(small).transpose(2, 0, 1))
    return Served(found.build(), 127.0, 128.0), torch.from_numpy(np.stack(pictures))


def main(name: str, folder: Path, workers: int) -> None:
    """Write the files."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    served, images = {"digits": digits, "lite0": lite0}[name]()
    served = served.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        best = served.logits(images).topk(2).values
        images = images[best[:, 0] - best[:, 1] > MARGIN]
        images = images if name == "digits" else images[:PICTURES]
        labels = served(images).tolist()
    with torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.trace(served, images[:2], check_trace=False))
    frozen.save(str(folder / "model.pt"))
    (folder / "images.bin").write_bytes(images.numpy().tobytes())
    meta = {
        "name": name,
        "shape": list(images.shape[1:]),
        "labels": labels,
        "workers": workers,
        "batch": BATCH,
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
