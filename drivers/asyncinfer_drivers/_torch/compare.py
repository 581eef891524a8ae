"""Whether a faster form of a model gives the model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from asyncinfer_drivers._torch.inputs import Bundle, each
from asyncinfer_drivers._torch.tree import opened, plain, same

__all__ = (
    "ATOL",
    "RTOL",
    "changed",
    "companions",
    "difference",
    "probes",
    "state",
    "unlike",
)

#: a number may differ by ``RTOL`` of itself and ``ATOL`` of the largest in its tensor, by dtype
RTOL = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
ATOL = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}

#: attributes that every module has
_INTERNAL = frozenset(vars(nn.Module()))


def difference(wanted: Any, got: Any, slack: float = 1.0) -> str:
    """How ``got`` differs from the model's output ``wanted``, beyond the tolerance; or ``""``.

    Structures, shapes and dtypes must be the same; numbers that are not floating, and all that is
    no number, equal. The largest of each row, which makes the class of a classifier, must be at
    the same place, unless the model itself does not tell the two apart by the tolerance. That is
    ``slack`` times the usual one.
    """
    old, new = opened(wanted), opened(got)
    if old is None or new is None:
        return "another structure" if old or new else _unlike(wanted, got, slack)
    if not old.like(new):
        return "another structure"
    pairs = zip(old.children, new.children, strict=True)
    return next((text for pair in pairs if (text := difference(*pair, slack))), "")


def _unlike(old: Any, new: Any, slack: float) -> str:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return _unlike_tensors(old, new, slack)
    if type(old) is not type(new):
        return "another value"
    if isinstance(old, np.ndarray | np.generic):
        return _unlike_arrays(np.asarray(old), np.asarray(new), slack)
    if isinstance(old, float):  # mostly of a float32 tensor
        return _unlike_tensors(torch.tensor(old), torch.tensor(new), slack)
    if plain(old):
        return "" if same(old, new) else "another value"
    return _unlike_objects(old, new, slack)


def _unlike_objects(old: Any, new: Any, slack: float) -> str:
    """Objects that are no containers are the same if they say so, or hold the same."""
    if same(old, new):
        return ""
    if not hasattr(old, "__dict__") or callable(old):
        return f"another {type(old).__name__}"
    try:
        return difference(vars(old), vars(new), slack)
    except RecursionError:  # it leads back to itself
        return f"another {type(old).__name__}"


def _unlike_arrays(old: np.ndarray[Any, Any], new: np.ndarray[Any, Any], slack: float) -> str:
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"{list(new.shape)} {new.dtype}, not {list(old.shape)} {old.dtype}"
    if old.dtype.kind in "fc":
        return _unlike_tensors(torch.from_numpy(old.copy()), torch.from_numpy(new.copy()), slack)
    return "" if np.array_equal(old, new) else "other values"


def _unlike_tensors(old: torch.Tensor, new: torch.Tensor, slack: float) -> str:
    if old.dtype != new.dtype or old.layout != new.layout or old.is_nested != new.is_nested:
        return f"{new.dtype} {new.layout}, not {old.dtype} {old.layout}"
    if old.is_nested:
        return difference(list(old.unbind()), list(new.unbind()), slack)
    if old.shape != new.shape:
        return f"{list(new.shape)} {new.dtype}, not {list(old.shape)} {old.dtype}"
    if old.layout is not torch.strided:
        old, new = old.to_dense(), new.to_dense()
    if old.is_complex():
        old, new = (torch.view_as_real(each.resolve_conj()) for each in (old, new))
    if old.dtype not in RTOL:
        return "" if torch.equal(old, new) else "other values"
    finite = old[torch.isfinite(old)].abs()
    rtol = slack * RTOL[old.dtype]
    atol = slack * ATOL[old.dtype] * (float(finite.max()) if finite.numel() else 0.0)
    if not torch.allclose(new, old, rtol=rtol, atol=atol, equal_nan=True):
        return f"off by up to {float((new - old).abs().nan_to_num().max()):.2g}"
    return _other_class(old, new, rtol, atol)


def _other_class(old: torch.Tensor, new: torch.Tensor, rtol: float, atol: float) -> str:
    if old.ndim < 2 or 0 in old.shape:
        return ""
    top = old.max(-1)
    rival = old.gather(-1, new.argmax(-1, keepdim=True)).squeeze(-1)
    tie = atol + rtol * top.values.abs()
    moved = (new.argmax(-1) != top.indices) & (top.values - rival > tie)
    return "another class" if bool(moved.any()) else ""


def probes(item: torch.Tensor) -> list[torch.Tensor]:
    """``item`` (one task's tensor) and others of its shape and dtype that differ from it.

    Floating ones: noise of its mean and spread, its opposite. Others, which may stand for words
    or classes: its own values in another order.
    """
    if isinstance(item, Bundle):
        return each(probes, item)
    turned = item.flatten().flip(0).roll(1).view(item.shape) if item.numel() else item
    if not item.dtype.is_floating_point:
        return [item, turned]
    generator = torch.Generator().manual_seed(42)
    noise = torch.randn(item.shape, generator=generator, dtype=torch.float32)
    spread = float(item.float().std()) if item.numel() > 1 else 0.0
    middle = float(item.float().mean()) if item.numel() else 0.0
    return [item, (middle + (spread or 1.0) * noise).to(item), -turned]


def unlike(item: torch.Tensor) -> list[torch.Tensor]:
    """More inputs of its shape and dtype, so unlike that they may take other ways through a model.

    Floating ones: much larger, much smaller, of one sign, all the same, one that stands out.
    Others: out of the item's own values, which are known to be allowed.
    """
    if isinstance(item, Bundle):
        return each(unlike, item)
    if not item.numel():
        return []
    flat = item.flatten()
    first = torch.zeros_like(flat, dtype=torch.bool)
    first[len(flat) // 2] = True
    first = first.view(item.shape)
    if item.dtype.is_floating_point or item.dtype.is_complex:
        zeros, ones = torch.zeros_like(item), torch.ones_like(item)
        signed = [item.abs(), -item.abs()] if item.dtype.is_floating_point else [-item]
        return [item * 100, item * 0.01, *signed, zeros, ones, torch.where(first, ones, zeros)]
    low, high = flat.min(), flat.max()
    same = [torch.full_like(item, int(value)) for value in (low, high)]
    return [*same, torch.where(first, high, low), flat.sort().values.view(item.shape)]


def companions(item: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What may share a batch with ``item``: what outweighs it, and what it outweighs.

    Of a pair, the answer to the lighter one is to be compared: that to something very large may
    hang on rounding.
    """
    if isinstance(item, Bundle):
        heavy, light = (partial(_companions, at) for at in (0, 1))
        return each(heavy, item), each(light, item)
    if item.numel() and (item.dtype.is_floating_point or item.dtype.is_complex):
        return [item * 100, item * -100], [item * 0.01]
    return unlike(item)[:2], []


def _companions(at: int, item: torch.Tensor) -> list[torch.Tensor]:
    return companions(item)[at]


def state(module: nn.Module) -> list[Any]:
    """What a call of ``module`` may change in it: copies of its buffers, attributes, containers.

    Two are compared by ``changed``. A model that keeps state cannot be replaced by a graph.
    """
    found: list[Any] = []
    for part in module.modules():
        found += [buffer.clone() for buffer in part.buffers(recurse=False)]
        found += [_writes(parameter) for parameter in part.parameters(recurse=False)]
        own = [value for name, value in vars(part).items() if name not in _INTERNAL]
        found += [_copied(value, 4) for value in own]
    return found


def _writes(tensor: torch.Tensor) -> int:
    """How often it was written to; nobody counts that of a tensor made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _copied(value: Any, depth: int) -> Any:
    """What can be compared with ``value`` later, when it has been changed in place."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if depth == 0 or isinstance(value, nn.Module | type):
        return value
    if isinstance(value, dict):
        return [value.__class__, *(_copied(item, depth - 1) for item in value.items())]
    if isinstance(value, list | tuple | set):
        return [value.__class__, *(_copied(item, depth - 1) for item in value)]
    if hasattr(value, "__dict__") and not callable(value):
        return [value, _copied(vars(value), depth - 1)]
    return value


def changed(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether two ``state`` differ."""
    return len(before) != len(after) or not all(map(_same, before, after))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple) and type(one) is type(other):
        return not changed(one, other)
    if isinstance(one, int | float | str | bytes) and type(one) is type(other):
        return bool(one == other)
    return one is other
