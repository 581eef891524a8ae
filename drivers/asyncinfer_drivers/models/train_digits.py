"""Trains the digits model: ``python -m asyncinfer_drivers.models.train_digits [FILE]``.

Seed 42, one thread, a quarter held out: the same weights on every run on one machine. Prints the
held-out accuracy and writes the weights, by default over those in the package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from asyncinfer_drivers.models.digits import WEIGHTS, architecture, inputs, preprocess

__all__ = ("main", "split", "train")

SEED = 42
EPOCHS = 60
BATCH = 64


class Part(NamedTuple):
    """Pictures ``[n, 1, 8, 8]`` and their digits ``[n]``."""

    pictures: torch.Tensor
    digits: torch.Tensor


def split() -> tuple[Part, Part]:
    """The digits in a fixed random order: three quarters to train on, one held out."""
    data = inputs()
    pictures = torch.stack([preprocess(item) for item in data.items])
    digits = torch.tensor(data.targets)
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(digits)))
    train, held_out = order[len(order) // 4 :], order[: len(order) // 4]
    return Part(pictures[train], digits[train]), Part(pictures[held_out], digits[held_out])


def train(part: Part, epochs: int = EPOCHS) -> nn.Module:
    """A net trained on ``part``, in evaluation mode. Sets torch's seed and thread count."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    net = architecture()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = epochs * -(-len(part.digits) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(part.digits))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            optimizer.zero_grad()
            logits = net(part.pictures[batch])
            loss = nn.functional.cross_entropy(logits, part.digits[batch], label_smoothing=0.05)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: nn.Module, part: Part) -> float:
    """The fraction of ``part`` that ``net`` gets right."""
    with torch.inference_mode():
        return float((net(part.pictures).argmax(1) == part.digits).float().mean())


def main(file: Path = WEIGHTS) -> None:
    """Train, print the accuracy, save."""
    training, held_out = split()
    net = train(training)
    print(f"held-out accuracy {accuracy(net, held_out):.2%} of {len(held_out.digits)} digits")
    np.savez(file, **{name: value.numpy() for name, value in net.state_dict().items()})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
