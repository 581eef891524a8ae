"""Whether a driver's answer is the plain call's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch


def leaves(value: Any) -> Iterator[Any]:
    """All that is in an answer, whatever holds it: containers may be others than the model's."""
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif isinstance(value, np.ndarray | np.generic):
        yield torch.as_tensor(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from leaves(item)
    elif is_dataclass(value):
        for one in fields(value):
            yield from leaves(getattr(value, one.name))
    elif value is None or isinstance(value, type):
        pass
    elif isinstance(value, bool | int | float | str | bytes | torch.device | torch.dtype):
        yield value
    else:
        yield from leaves(vars(value))


def unlike(wanted: Any, got: Any, tolerance: float) -> str:
    """How an answer for one task differs from the plain call on a batch of it; ``""``: it does not.

    Dimensions of 1 do not count: the batch may be left out, wherever it is.
    """
    old, new = list(leaves(wanted)), list(leaves(got))
    if len(old) != len(new):
        return f"{len(new)} parts instead of {len(old)}"
    for number, pair in enumerate(zip(old, new, strict=True)):
        if text := _unlike(*pair, tolerance):
            return text if len(old) == 1 else f"part {number} of {len(old)}: {text}"
    return ""


def _unlike(old: Any, new: Any, tolerance: float) -> str:
    if not isinstance(old, torch.Tensor) and not isinstance(new, torch.Tensor):
        return "" if old == new else f"{new!r} instead of {old!r}"
    old, new = torch.as_tensor(old), torch.as_tensor(new)
    if old.shape != new.shape:
        if [s for s in old.shape if s != 1] != [s for s in new.shape if s != 1]:
            return f"shape {list(new.shape)} instead of {list(old.shape)}"
        new = new.reshape(old.shape)
    if old.dtype != new.dtype:
        return f"{new.dtype} instead of {old.dtype}"
    if old.is_quantized:
        old, new = old.dequantize(), new.dequantize()
    if not (old.dtype.is_floating_point or old.dtype.is_complex):
        return "" if torch.equal(old, new) else "other values"
    return _off(old, new, tolerance)


def _off(old: torch.Tensor, new: torch.Tensor, tolerance: float) -> str:
    old, new = (torch.view_as_real(x) if x.is_complex() else x for x in (old, new))
    old, new = old.double(), new.double()
    if not torch.equal(old.isfinite(), new.isfinite()):
        return "not finite where the model is, or the other way round"
    old, new = old.nan_to_num(), new.nan_to_num()
    largest = float(old.abs().max()) if old.numel() else 0.0
    if torch.allclose(new, old, rtol=tolerance, atol=tolerance * largest / 10 + 1e-9):
        return ""
    off = float((new - old).abs().max())
    return f"off by {off:.2g} where the largest is {largest:.2g}"
