"""MTCNN as one module: pictures in, faces out.

After K. Zhang, Z. Zhang, Z. Li, Y. Qiao: "Joint Face Detection and Alignment Using Multitask
Cascaded Convolutional Networks", IEEE Signal Processing Letters, 2016. P-Net slides over the
picture in many sizes and proposes windows; R-Net and O-Net look at what is left, ever more closely.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d
from torch.nn.utils.rnn import pad_sequence

from asyncinfer_drivers.models.mtcnn_boxes import cut, moved, squared, suppress, table_of
from asyncinfer_drivers.models.mtcnn_nets import ONet, PNet, RNet, Seen

__all__ = ("COLUMNS", "Mtcnn", "levels", "reduced")

#: columns of a face: its box, its probability, x and y of five landmarks
COLUMNS = 4 + 1 + 5 * 2

#: each step of the pyramid has this part of the sides of the one before, and half of its area
_STEP = 0.709

#: pictures of more pixels are reduced first
_PIXELS = 4_000_000

#: most windows handed on by each net: bounds time and memory, whatever the picture
_WINDOWS = 1000

#: windows that go through a net together: 250 of O-Net's take some 100 MB
_CHUNK = 250


class Mtcnn(nn.Module):
    """Finds the faces in uint8 pictures ``[n, 3, h, w]``: float32 ``[n, k, 15]``.

    A row is a face, the likeliest first: x1, y1, x2, y2 in pixels of the picture, the probability,
    then x and y of left eye, right eye, nose, left and right corner of the mouth; left is left in
    the picture. A picture with fewer faces than the ``k`` of the richest ends with rows of NaN.

    Each picture is looked at alone, so that its faces do not depend on its neighbours. Faces are
    found from ``min_face`` pixels on. A picture of more than 4 million pixels is reduced by a whole
    number first, and its smallest face is larger by that number.

    What it computes depends on what it finds, so that a trace would be wrong: it raises
    ``RuntimeError`` when it is traced. ``pnet``, ``rnet`` and ``onet`` can be.
    """

    def __init__(
        self, min_face: int = 20, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    ) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()
        self.min_face = min_face
        #: probability from which P-, R- and O-Net keep a window
        self.thresholds = thresholds

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """The faces of each picture."""
        jit: Any = torch.jit  # its stubs leave this out
        if jit.is_tracing():
            raise RuntimeError("what MTCNN computes depends on what it finds: it cannot be traced")
        faces = [self._faces(picture) for picture in pictures]
        return pad_sequence(faces, batch_first=True, padding_value=math.nan)

    def _faces(self, picture: torch.Tensor) -> torch.Tensor:
        none = torch.empty(0, COLUMNS, device=picture.device)
        factor = max(1, math.ceil(math.sqrt(picture[0].numel() / _PIXELS)))
        if min(picture.shape[1:]) // factor < self.min_face:
            return none
        table = table_of(reduced(picture, factor))
        boxes = self._proposed(table)
        if len(boxes):
            boxes = self._refined(table, boxes)
        return self._fitted(table, boxes, factor) if len(boxes) else none

    def _proposed(self, table: torch.Tensor) -> torch.Tensor:
        """The windows that P-Net takes for faces, as squares."""
        sizes = levels(*_size(table), PNet.SIDE / self.min_face)
        found = [self._slide(table, height, width) for height, width in sizes]
        boxes, face, shift = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = _best(face)
        kept = kept[suppress(boxes[kept], face[kept], 0.7)]
        return squared(moved(boxes[kept], shift[kept]))

    def _slide(
        self, table: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """P-Net over the picture as ``height`` x ``width``: boxes, probabilities, shifts."""
        rows, columns = _size(table)
        whole = table.new_tensor([[0, 0, columns, rows]])
        faces, shifts = self.pnet(self._pixels(table, whole, height, width))
        face, shift = faces.flatten(), shifts.flatten(0, 1)
        kept = _best(face, self.thresholds[0])
        corner = torch.stack([kept % faces.shape[1], kept // faces.shape[1]], 1) * PNet.STRIDE
        scale = face.new_tensor([columns / width, rows / height])
        boxes = torch.cat([corner * scale, (corner + PNet.SIDE) * scale], 1)
        stays = suppress(boxes, face[kept], 0.5)
        return boxes[stays], face[kept[stays]], shift[kept[stays]]

    def _refined(self, table: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Those windows that R-Net takes for faces, as squares."""
        face, shift, _ = self._look(self.rnet, table, boxes)
        kept = _best(face, self.thresholds[1])
        kept = kept[suppress(boxes[kept], face[kept], 0.7)]
        return squared(moved(boxes[kept], shift[kept]))

    def _fitted(self, table: torch.Tensor, windows: torch.Tensor, factor: int) -> torch.Tensor:
        """The rows of those windows that O-Net takes for faces."""
        face, shift, landmarks = self._look(self.onet, table, windows)
        boxes = moved(windows, shift)
        kept = _best(face, self.thresholds[2])
        kept = kept[suppress(boxes[kept], face[kept], 0.7, of_smaller=True)]
        corner, far_corner = windows[kept, None].chunk(2, -1)
        points = corner + landmarks[kept] * (far_corner - corner)
        rows, columns = _size(table)
        inside = boxes[kept].clamp(min=0).minimum(boxes.new_tensor([columns, rows] * 2))
        return torch.cat([inside * factor, face[kept, None], points.flatten(1) * factor], 1)

    def _look(self, net: RNet | ONet, table: torch.Tensor, boxes: torch.Tensor) -> Seen:
        """What the net makes of the windows."""
        parts = [boxes[start : start + _CHUNK] for start in range(0, len(boxes), _CHUNK)]
        seen = [net(self._pixels(table, part, net.SIDE, net.SIDE)) for part in parts]
        return Seen(*(torch.cat(columns) for columns in zip(*seen, strict=True)))

    def _pixels(
        self, table: torch.Tensor, boxes: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """Windows as the nets take them, where the nets are."""
        pixels = cut(table, boxes, height, width).to(self.onet.conv1.weight.device)
        return (pixels - 127.5) / 128


def levels(height: int, width: int, scale: float) -> list[tuple[int, int]]:
    """The sizes at which P-Net looks at a picture, the first ``scale`` of its own."""
    sizes = list[tuple[int, int]]()
    while min(size := (round(height * scale), round(width * scale))) >= PNet.SIDE:
        sizes.append(size)
        scale *= _STEP
    return sizes


def reduced(picture: torch.Tensor, factor: int) -> torch.Tensor:
    """uint8 ``[3, h, w]`` as the means of squares of ``factor`` pixels; the rest is cut off.

    Strip by strip: the floats of a whole picture might fill the memory.
    """
    if factor == 1:
        return picture
    end, step = picture.shape[1] // factor * factor, factor * 64
    strips = [picture[:, top : min(top + step, end)] for top in range(0, end, step)]
    return torch.cat([avg_pool2d(strip.float(), factor) for strip in strips], 1)


def _size(table: torch.Tensor) -> tuple[int, int]:
    """Height and width of the picture."""
    return table.shape[0] - 1, table.shape[1] - 1


def _best(scores: torch.Tensor, above: float = 0.0) -> torch.Tensor:
    """The indices of scores ``above`` that, best first; no more than are handed on."""
    likely = (scores > above).nonzero()[:, 0]
    return likely[scores[likely].argsort(descending=True, stable=True)[:_WINDOWS]]
