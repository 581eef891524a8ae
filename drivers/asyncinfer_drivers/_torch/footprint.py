"""How much memory a model's weights take, and whether a form may take as much again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ("too_large", "weights")

#: bytes of weights up to which a form may be sought unasked. Drivers of one module have its weights
#: in common, but each form holds weights of its own: folded, in another order or packed
_MOST = 256 << 20


def weights(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def too_large(module: nn.Module) -> str:
    """Why no form of it is sought unasked; or ``""``."""
    size = weights(module)
    if size <= _MOST:
        return ""
    return f"its weights take {size / 2**20:.0f} MiB, and a form would take as much again"
