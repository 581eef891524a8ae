"""Whether a module answers the same each time, as a board will."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ("memory_of",)

_REMEMBERS = (
    "it keeps state between calls, which a board does not: take the state as part of the input, "
    "and return the new one"
)
_DRAWS = (
    "it draws random numbers, and answers the same input otherwise each time: leave them out, as "
    "F.dropout(x, training=self.training) does, and call eval() before you export a .pt2 file"
)


def memory_of(module: nn.Module, sample: torch.Tensor) -> str:
    """What makes the answers of ``module`` differ from call to call; empty if nothing does.

    However it is written, a second call with the same input, after one with another, shows it.
    """
    import torch

    from asyncinfer_drivers._torch.compare import difference

    other = sample * 0.5 + 0.25
    before = torch.get_rng_state()
    first, second = ([module(given.clone()) for given in (sample, other)] for _ in range(2))
    if not difference(first, second):
        return ""
    return _REMEMBERS if torch.equal(before, torch.get_rng_state()) else _DRAWS
