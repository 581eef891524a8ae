"""Face detection: MTCNN with the pretrained weights of a PyPI package.

The weights come with ``facenet-pytorch`` (MIT licence), which has them from the paper's authors by
way of TensorFlow. Its code is not used: the package is not imported, and what it requires, a torch
before 2.3 among others, need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers.models._base import Files, InputSet, Model
from asyncinfer_drivers.models._images import MAX_PIXELS, as_rgb, bundled, read_image, to_rgb

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ("INSTALL", "MODEL", "Face", "Truth")

#: brings the weights. An extra cannot do it: the package pins an old torch, which only
#: ``--no-deps`` leaves out
INSTALL = "pip install --no-deps facenet-pytorch==2.6.0"

Box = tuple[float, float, float, float]

#: pictures in the wheels of scikit-image and scikit-learn, and where their faces are: from hair
#: line to chin, drawn by hand
_PICTURES: tuple[tuple[str, str, tuple[Box, ...]], ...] = (
    ("skimage", "data/astronaut.png", ((181, 68, 266, 177),)),
    ("skimage", "data/camera.png", ((202, 126, 255, 198),)),
    ("skimage", "data/chelsea.png", ()),
    ("skimage", "data/coffee.png", ()),
    ("skimage", "data/rocket.jpg", ()),
    ("sklearn", "datasets/images/china.jpg", ()),
    ("sklearn", "datasets/images/flower.jpg", ()),
)


class Face(NamedTuple):
    """A face in a picture; left is left in the picture."""

    #: x1, y1, x2, y2 in pixels, within the picture
    box: Box
    #: that it is a face, above 0.7
    probability: float
    #: x, y of left eye, right eye, nose, left and right corner of the mouth
    landmarks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Truth:
    """Where a picture's faces are; equal to what was found if that is all of them, and only them.

    A face counts as found if its box and the true one share half of their union, or more.
    """

    boxes: tuple[Box, ...]

    def __eq__(self, found: object) -> bool:
        if not isinstance(found, Sequence) or len(found) != len(self.boxes):
            return False
        left = list(self.boxes)
        for face in found:
            near = [box for box in left if _overlap(box, face.box) >= 0.5]
            if not near:
                return False
            left.remove(near[0])
        return True


def build(min_face: int = 20) -> nn.Module:
    """The three nets as one module, which finds faces of at least ``min_face`` pixels: ``Mtcnn``.

    ``ConfigError`` tells how to install the weights if they are not.
    """
    import torch

    from asyncinfer_drivers.models.mtcnn_cascade import Mtcnn

    net = Mtcnn(min_face)
    for part in ("pnet", "rnet", "onet"):
        file = bundled("facenet_pytorch", f"data/{part}.pt")
        if file is None:
            raise ConfigError(f"the weights of mtcnn are not installed: {INSTALL}")
        weights = torch.load(file, map_location="cpu", weights_only=True)
        net.get_submodule(part).load_state_dict(weights)
    return net.eval()


def preprocess(item: Any) -> torch.Tensor:
    """A picture as uint8 ``[3, h, w]``, of the size it has.

    Takes a PIL image, a file's ``Path``, or a uint8 array ``[h, w]``, ``[h, w, 3]`` or
    ``[h, w, 4]``. What is transparent counts as white. ``InputError`` if it is none of them, or
    has more than ``MAX_PIXELS`` pixels.
    """
    import numpy as np
    import torch

    image = as_rgb(item)
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"a picture of more than {MAX_PIXELS:,} pixels")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def postprocess(rows: torch.Tensor) -> list[Face]:
    """The faces, the likeliest first: places to a tenth of a pixel."""
    return [_face(row) for row in rows[~rows[:, 0].isnan()].tolist()]


def inputs() -> InputSet:
    """The pictures found in scikit-image and scikit-learn, read when indexed, and their faces."""
    found = [
        (path, Truth(boxes))
        for package, file, boxes in _PICTURES
        if (path := bundled(package, file))
    ]
    if not found:
        raise ConfigError("no pictures: pip install 'asyncinfer[models]'")
    paths = [path for path, _ in found]
    return InputSet([path.name for path in paths], Files(paths, decode), [t for _, t in found])


def decode(path: Path) -> np.ndarray[Any, Any]:
    """A picture file as a uint8 array ``[h, w, 3]``."""
    import numpy as np

    return np.asarray(to_rgb(read_image(path)))


def example() -> np.ndarray[Any, Any]:
    """A drawn face, 240 x 320, which all three nets look at."""
    import numpy as np

    y, x = np.mgrid[0:240, 0:320]

    def ellipse(cx: int, cy: int, rx: int, ry: int) -> np.ndarray[Any, Any]:
        inside: np.ndarray[Any, Any] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        return inside

    picture = np.full((240, 320, 3), 200, dtype=np.uint8)
    picture[ellipse(160, 105, 62, 80)] = (70, 50, 40)
    picture[ellipse(160, 120, 50, 68)] = (224, 172, 140)
    for cx in (140, 180):
        picture[ellipse(cx, 95, 11, 3)] = (80, 60, 50)
        picture[ellipse(cx, 106, 9, 5)] = (245, 245, 245)
        picture[ellipse(cx, 106, 5, 5)] = (40, 30, 30)
    picture[ellipse(160, 130, 8, 6)] = (190, 130, 105)
    picture[ellipse(160, 155, 20, 6)] = (160, 60, 60)
    return picture


def _face(row: list[float]) -> Face:
    x1, y1, x2, y2 = (round(place, 1) for place in row[:4])
    points = [round(place, 1) for place in row[5:]]
    landmarks = tuple(zip(points[::2], points[1::2], strict=True))
    return Face((x1, y1, x2, y2), round(row[4], 4), landmarks)


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return shared / (sum(areas) - shared)


MODEL = Model(
    name="mtcnn",
    description="faces in pictures of any size: boxes and landmarks, 0.5 M weights (MTCNN)",
    build=build,
    preprocess=preprocess,
    postprocess=postprocess,
    inputs=inputs,
    decode=decode,
    example=example,
    shape=(3, -1, -1),
)
