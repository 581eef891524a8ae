"""Boxes ``[n, 4]`` of float32 x1, y1, x2, y2 in pixels: overlaps, moving, and cutting them out."""

from __future__ import annotations

import torch

__all__ = ("cut", "moved", "overlaps", "squared", "suppress", "table_of")


def overlaps(one: torch.Tensor, other: torch.Tensor, *, of_smaller: bool = False) -> torch.Tensor:
    """For each box of ``one`` and of ``other``, ``[n, m]``, their intersection over their union.

    ``of_smaller`` divides by the smaller of the two areas instead: 1 for a box inside another.
    """
    corner = torch.maximum(one[:, None, :2], other[None, :, :2])
    far_corner = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (far_corner - corner).clamp(min=0).prod(2)
    mine, yours = _areas(one)[:, None], _areas(other)[None]
    whole = torch.minimum(mine, yours) if of_smaller else mine + yours - shared
    return torch.where(shared > 0, shared / whole, 0.0)


def suppress(
    boxes: torch.Tensor, scores: torch.Tensor, limit: float, *, of_smaller: bool = False
) -> torch.Tensor:
    """Greedy non-maximum suppression: the indices of the boxes that stay, best first.

    From the best score down, a box stays unless one that stays overlaps it by more than ``limit``;
    of equal scores the first wins. All boxes are decided at once, again and again until nothing
    changes: what beats no. ``i`` is settled after ``i`` turns, in practice after a handful.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    beats = (overlaps(ranked, ranked, of_smaller=of_smaller) > limit).triu(1)
    stays = torch.ones_like(order, dtype=torch.bool)
    while True:
        now = ~(beats & stays[:, None]).any(0)
        if torch.equal(now, stays):
            return order[stays]
        stays = now


def moved(boxes: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Boxes with each side moved by a ``shift`` in widths or heights of its box."""
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes + shift * size.repeat(1, 2)


def squared(boxes: torch.Tensor) -> torch.Tensor:
    """Squares about the boxes, with their longer side, in whole pixels as the nets know them."""
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.amax(1, keepdim=True).floor().clamp(min=1)
    corner = (boxes[:, :2] + size / 2 - side / 2).floor()
    return torch.cat([corner, corner + side], 1)


def table_of(picture: torch.Tensor) -> torch.Tensor:
    """The summed-area table of ``[3, h, w]``: float64 ``[h + 1, w + 1, 3]``.

    Entry ``y, x`` is the sum of all pixels above and left of that point, so that the mean of any
    rectangle takes four of them. float32 could not tell such sums apart, and MPS has no more.
    """
    pixels = picture.cpu() if picture.device.type == "mps" else picture
    sums = pixels.permute(1, 2, 0).to(torch.float64).cumsum(0).cumsum(1)
    return torch.nn.functional.pad(sums, (0, 0, 1, 0, 1, 0))


def cut(table: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Each box cut out of the picture and resized: float32 ``[n, 3, height, width]``.

    A pixel is the mean of what it covers, parts of pixels included. Beyond the picture is black.
    """
    boxes = boxes.to(table)
    ys = _edges(boxes[:, 1], boxes[:, 3], height)
    xs = _edges(boxes[:, 0], boxes[:, 2], width)
    sums = _at(table, ys, xs).diff(dim=1).diff(dim=2)
    area = _areas(boxes) / (height * width)
    return (sums / area[:, None, None, None]).permute(0, 3, 1, 2).float()


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _edges(start: torch.Tensor, end: torch.Tensor, count: int) -> torch.Tensor:
    """The edges, ``[n, count + 1]``, of ``count`` equal parts of each range."""
    parts = torch.arange(count + 1, dtype=start.dtype, device=start.device) / count
    return start[:, None] + (end - start)[:, None] * parts


def _at(table: torch.Tensor, ys: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    """The table between its entries, ``[n, rows, columns, 3]``: it is linear within a pixel."""
    stride = table.shape[1]
    top, down = _split(ys, table.shape[0] - 1)
    left, right = _split(xs, stride - 1)
    flat = table.flatten(0, 1)
    corner = top[:, :, None] * stride + left[:, None]
    down, right = down[:, :, None, None], right[:, None, :, None]
    above = torch.lerp(flat[corner], flat[corner + 1], right)
    below = torch.lerp(flat[corner + stride], flat[corner + stride + 1], right)
    return torch.lerp(above, below, down)


def _split(places: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places along a side of ``size`` pixels as the pixel, and how far into it (0 to 1)."""
    inside = places.clamp(0, size)
    pixel = inside.floor().clamp(max=size - 1)
    return pixel.long(), inside - pixel
