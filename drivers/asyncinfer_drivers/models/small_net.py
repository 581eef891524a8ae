"""A net of MobileNet's kind for measuring: untrained, yet with answers that differ by input."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ("SIZE", "build", "images")

#: side of a picture, in pixels
SIZE = 64
#: (channels, stride, blocks) of each stage
_STAGES = ((16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 3), (96, 1, 2))
_CLASSES = 100


class _Block(nn.Module):
    """Expansion, depthwise convolution, projection; added to its input where shapes allow."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inside
        self.added = stride == 1 and inside == outside
        self.layers = nn.Sequential(
            *_layer(inside, wide, 1),
            *_layer(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(inputs)
        return inputs + outputs if self.added else outputs


def _layer(
    inside: int, outside: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU6()]


def build() -> nn.Module:
    """The net: float32 ``[n, 3, 64, 64]`` to ``[n, 100]``; 0.3 M weights, in evaluation mode.

    Weights are of seed 42. Batch normalisation is calibrated: with the statistics it begins with,
    a deep net gives about the same output for every input, and no check would notice a mix-up.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        layers = _layer(3, 16, 3, 2)
        inside = 16
        for outside, stride, blocks in _STAGES:
            for block in range(blocks):
                layers.append(_Block(inside, outside, stride if block == 0 else 1))
                inside = outside
        layers += [*_layer(inside, 320, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(320, _CLASSES))
        _calibrate(net)
    return net.eval()


@torch.no_grad()
def _calibrate(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain mean of all batches
    net.train()
    net(torch.stack(images(16)))


def images(count: int) -> list[torch.Tensor]:
    """``count`` pictures of noise, float32 ``[3, 64, 64]``: all different, 64 kinds of them."""
    generator = torch.Generator().manual_seed(42)
    kinds = torch.randn(min(count, 64), 3, SIZE, SIZE, generator=generator)
    return [kinds[index % len(kinds)] for index in range(count)]
