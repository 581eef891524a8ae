"""The four nets of MLPerf Tiny, written from their published description, with random weights.

The description is the Keras code of https://github.com/mlcommons/tiny (``benchmark/training``).
Every layer is there, "same" padding and biases included; the last softmax is not, since what it
gives follows from what it is given. Weights are He's random ones; the statistics of each
normalisation are those of some inputs, as after training. Its bias of one keeps most ReLUs open:
else random layers, unlike trained ones, make chaos of the smallest difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ("NETS", "Net")

#: inputs that the normalisations are calibrated with
_STATISTICS = 64


def same(size: tuple[int, int], kernel: tuple[int, int], stride: int) -> nn.ZeroPad2d | None:
    """TensorFlow's "same" padding, whose odd row and column are at the end."""
    total = [
        max(0, (-(-n // stride) - 1) * stride + k - n) for n, k in zip(size, kernel, strict=True)
    ]
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in total)
    return nn.ZeroPad2d((left, right, top, bottom)) if sum(total) else None


class Convolution(nn.Sequential):
    """Padding, convolution, normalisation and ReLU."""

    def __init__(
        self,
        size: tuple[int, int],
        channels: tuple[int, int],
        kernel: tuple[int, int] = (3, 3),
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        pad = same(size, kernel, stride)
        layers = [] if pad is None else [pad]
        layers += [nn.Conv2d(*channels, kernel, stride, groups=groups), nn.BatchNorm2d(channels[1])]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


def separable(size: tuple[int, int], channels: tuple[int, int], stride: int = 1) -> list[nn.Module]:
    """A depthwise convolution and one of single pixels."""
    depthwise = Convolution(size, (channels[0],) * 2, stride=stride, groups=channels[0])
    return [depthwise, Convolution(size, channels, (1, 1))]


def keyword_spotting() -> nn.Module:
    """DS-CNN: 49 frames of 10 coefficients to 12 words."""
    blocks = [layer for _ in range(4) for layer in separable((25, 5), (64, 64))]
    first = Convolution((49, 10), (1, 64), (10, 4), stride=2)
    return nn.Sequential(first, *blocks, nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12))


def person_detection() -> nn.Module:
    """MobileNetV1 of a quarter of its width: a picture to a person or none."""
    size, channels = 48, 8
    layers: list[nn.Module] = [Convolution((96, 96), (3, channels), stride=2)]
    widths = (
        (16, 1),
        (32, 2),
        (32, 1),
        (64, 2),
        (64, 1),
        (128, 2),
        *((128, 1),) * 5,
        (256, 2),
        (256, 1),
    )
    for wide, stride in widths:
        layers += separable((size, size), (channels, wide), stride)
        size, channels = size // stride, wide
    return nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(256, 2))


class Residual(nn.Module):
    """Two convolutions beside what comes in, or beside a convolution of it."""

    def __init__(self, size: int, channels: tuple[int, int], stride: int) -> None:
        super().__init__()
        inner = (size // stride,) * 2
        self.first = Convolution((size, size), channels, stride=stride)
        self.second = Convolution(inner, (channels[1],) * 2, relu=False)
        self.beside = nn.Identity() if stride == 1 else nn.Conv2d(*channels, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, picture: Tensor) -> Tensor:
        """The sum of both ways."""
        activated: Tensor = self.relu(self.beside(picture) + self.second(self.first(picture)))
        return activated


def image_classification() -> nn.Module:
    """ResNet-8: a picture of 32x32 to ten classes."""
    return nn.Sequential(
        Convolution((32, 32), (3, 16)),
        Residual(32, (16, 16), 1),
        Residual(32, (16, 32), 2),
        Residual(16, (32, 64), 2),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def anomaly_detection() -> nn.Module:
    """An autoencoder of 640 numbers, with 8 in its middle."""
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


@dataclass(frozen=True)
class Net:
    """One of them."""

    name: str
    make: Callable[[], nn.Module]
    #: of one input, as PyTorch has it
    shape: Sequence[int]
    #: as Keras counts them, with the statistics
    parameters: int

    def inputs(self, count: int) -> NDArray[np.float32]:
        """Random inputs in which neighbours are alike, as in pictures and in spectra."""
        axes = tuple(range(1 - len(self.shape), 0)) or (-1,)
        noise = np.random.default_rng(42).normal(size=(count, *self.shape))
        waves = np.meshgrid(*(np.fft.fftfreq(self.shape[axis]) for axis in axes), indexing="ij")
        length = np.hypot.reduce([*waves, np.full_like(waves[0], 1 / max(self.shape))])
        smooth = np.fft.ifftn(np.fft.fftn(noise, axes=axes) / length, axes=axes).real
        scaled: NDArray[np.float32] = (smooth / smooth.std()).astype(np.float32)
        return scaled

    def module(self) -> nn.Module:
        """In evaluation mode, its statistics calibrated."""
        torch.manual_seed(42)
        made = self.make()
        for part in made.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)
                nn.init.uniform_(part.bias, -0.1, 0.1)
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.momentum = None  # the mean of all that it saw
                nn.init.ones_(part.bias)
        with torch.no_grad():
            made.train()(torch.from_numpy(self.inputs(_STATISTICS)))
        return made.eval()


#: by name; the short ones are MLPerf's
NETS = {
    net.name: net
    for net in (
        Net("kws", keyword_spotting, (1, 49, 10), 24_908),
        Net("vww", person_detection, (3, 96, 96), 221_794),
        Net("ic", image_classification, (3, 32, 32), 78_666),
        Net("ad", anomaly_detection, (640,), 269_992),
    )
}
