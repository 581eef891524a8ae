"""The digits net with a pause and some memory in each call, for ``TorchDriver``.

In a module of its own: the process of a driver imports it, and nothing else of the tests.
"""

from __future__ import annotations

import time

import torch

from asyncinfer.model import builtin

#: bytes a call asks the system for, and does not touch: a process without memory has none for it
SCRATCH = 64 << 20


class Paced(torch.nn.Module):
    """The net; its pace is the pause's, whatever else the processor has to do."""

    def __init__(self, pause):
        super().__init__()
        self.net, self.pause = builtin("digits").build(), pause

    def forward(self, images):
        torch.empty(SCRATCH, dtype=torch.uint8)
        time.sleep(self.pause)
        return self.net(images)
