"""Handwritten digits: a small CNN for the 8x8 pictures of scikit-learn's ``load_digits``.

It uses only what an INT8 compiler for a Cortex-M4 takes: convolution, ReLU, max pooling, linear.
``python -m asyncinfer_drivers.models.train_digits`` makes its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncinfer.errors import InputError
from asyncinfer_drivers.models._base import InputSet, Model, need
from asyncinfer_drivers.models._images import bundled, read_image

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ("MODEL", "WEIGHTS", "architecture")

#: the trained weights: one float32 array per parameter, by its name in ``architecture``
WEIGHTS = Path(__file__).with_name("digits.npz")

#: value of full ink in ``load_digits``
_INK = 16.0


def architecture() -> nn.Sequential:
    """The untrained net: float32 ``[n, 1, 8, 8]`` in 0..1 to logits ``[n, 10]``; 3,818 weights."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def build() -> nn.Module:
    """The trained net, in evaluation mode."""
    import numpy as np
    import torch

    net = architecture()
    with np.load(WEIGHTS) as arrays:
        net.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
    return net.eval()


def preprocess(item: Any) -> torch.Tensor:
    """An 8x8 picture with ink from 0 to 16 (array, nested lists, file) as float32 ``[1, 8, 8]``."""
    import numpy as np
    import torch

    try:
        picture = np.asarray(decode(item) if isinstance(item, Path) else item, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a digit is an 8x8 array, not this {type(item).__name__}") from error
    if picture.shape != (8, 8):
        raise InputError(f"a digit is an 8x8 array, not one of shape {list(picture.shape)}")
    return torch.from_numpy(picture / _INK).unsqueeze(0)


def collate(items: Sequence[Any]) -> torch.Tensor:
    """Pictures as arrays or nested lists, not files, as float32 ``[n, 1, 8, 8]``."""
    import numpy as np
    import torch

    try:
        pictures = np.asarray(items, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("not all of these are digits") from error
    if pictures.shape != (len(items), 8, 8):
        raise InputError("not all of these are digits")
    return torch.from_numpy(pictures / _INK).unsqueeze(1)


def postprocess(logits: torch.Tensor) -> int:
    """The digit, 0 to 9."""
    return int(logits.argmax())


def uncollate(logits: torch.Tensor) -> list[int]:
    """The digits of a whole batch."""
    digits: list[int] = logits.argmax(1).tolist()
    return digits


def inputs() -> InputSet:
    """All 1,797 pictures of ``load_digits``, with their labels."""
    pictures, labels = _data()
    names = [f"digit-{index:04}" for index in range(len(labels))]
    return InputSet(names, list(pictures), [int(label) for label in labels])


def _data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What ``load_digits`` returns, but from its file: importing scikit-learn takes most of 1 s."""
    import numpy as np

    file = bundled("sklearn", "datasets/data/digits.csv.gz")
    if file is None:
        data = need("sklearn.datasets").load_digits()
        return data.images, data.target
    rows = np.loadtxt(file, delimiter=",")  # of 64 pixels and a label
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


def decode(path: Path) -> np.ndarray[Any, Any]:
    """A picture of one digit, of any size and with light or dark ink, as an 8x8 array of 0..16."""
    import numpy as np
    from PIL import Image

    small = read_image(path).convert("L").resize((8, 8), Image.Resampling.BOX)
    ink = np.asarray(small, dtype=np.float32) / 255
    border = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    if np.median(border) > 0.5:  # light paper
        ink = 1 - ink
    return ink / max(float(ink.max()), 1 / 255) * _INK


def example() -> np.ndarray[Any, Any]:
    """A vertical stroke: a 1."""
    import numpy as np

    picture = np.zeros((8, 8), dtype=np.float32)
    picture[:, 3:5] = _INK
    return picture


MODEL = Model(
    name="digits",
    description="handwritten digits, 8x8, 3.8 k weights (CNN, trained by this project)",
    build=build,
    preprocess=preprocess,
    postprocess=postprocess,
    inputs=inputs,
    decode=decode,
    example=example,
    collate=collate,
    uncollate=uncollate,
)
