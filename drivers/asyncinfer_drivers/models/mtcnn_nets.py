"""The three nets of MTCNN, with the layers of the paper and the names of the published weights.

Each looks at windows of a fixed side and tells, for each window, how likely it holds a face and
how the window has to be moved to fit it; O-Net adds five landmarks. They take pixels as
``(x - 127.5) / 128``. As in the paper's own code the features of a window are flattened column by
column, so that a dense layer's weights fit only with ``_columns``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

__all__ = ("ONet", "PNet", "RNet", "Seen")


class Seen(NamedTuple):
    """What a net makes of ``k`` windows."""

    #: probability that the window holds a face, ``[k]``
    face: torch.Tensor
    #: how far the sides x1, y1, x2, y2 have to move, in its widths and heights, ``[k, 4]``
    shift: torch.Tensor
    #: x and y of the landmarks, in its widths and heights from its corner, ``[k, 5, 2]``; from
    #: R-Net, which has none, ``[k, 0, 2]``
    landmarks: torch.Tensor


class PNet(nn.Module):
    """Proposes: slides over a picture of any size, 12 x 12 pixels at a time; 6,632 weights."""

    #: side of its window, and the step from one window to the next, in pixels
    SIDE, STRIDE = 12, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, kernel_size=3)
        self.prelu1 = nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(10, 16, kernel_size=3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, kernel_size=3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, kernel_size=1)
        self.conv4_2 = nn.Conv2d(32, 4, kernel_size=1)

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From ``[1, 3, h, w]`` the probability ``[r, c]`` and shift ``[r, c, 4]`` of each window.

        The window in row ``i`` and column ``j`` has its corner at ``y = 2 i``, ``x = 2 j``.
        """
        x = self.pool1(self.prelu1(self.conv1(picture)))
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return self.conv4_1(x).softmax(1)[0, 1], self.conv4_2(x)[0].permute(1, 2, 0)


class RNet(nn.Module):
    """Refines: throws out most of what P-Net proposes; 100,178 weights."""

    #: side of its window in pixels
    SIDE = 24

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, kernel_size=3)
        self.prelu1 = nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(28, 48, kernel_size=3)
        self.prelu2 = nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(48, 64, kernel_size=2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(3 * 3 * 64, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, windows: torch.Tensor) -> Seen:
        """Look at windows ``[k, 3, 24, 24]``."""
        x = self.pool1(self.prelu1(self.conv1(windows)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_columns(x)))
        none = x.new_empty(x.shape[0], 0, 2)
        return Seen(self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x), none)


class ONet(nn.Module):
    """Gives the output: which are faces, where exactly, and their landmarks; 389,040 weights."""

    #: side of its window in pixels
    SIDE = 48

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3)
        self.prelu1 = nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3)
        self.prelu2 = nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(64, 64, kernel_size=3)
        self.prelu3 = nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4 = nn.Conv2d(64, 128, kernel_size=2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(3 * 3 * 128, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, windows: torch.Tensor) -> Seen:
        """Look at windows ``[k, 3, 48, 48]``."""
        x = self.pool1(self.prelu1(self.conv1(windows)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_columns(x)))
        landmarks = self.dense6_3(x).unflatten(1, (2, 5)).transpose(1, 2)  # all x, then all y
        return Seen(self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), landmarks)


def _columns(features: torch.Tensor) -> torch.Tensor:
    """``[k, c, h, w]`` as ``[k, w * h * c]``."""
    return features.permute(0, 3, 2, 1).flatten(1)
