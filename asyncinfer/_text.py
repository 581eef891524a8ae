"""Values as text and as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

__all__ = ("plain", "rate", "seconds", "size")


def seconds(value: float | None) -> str:
    """A duration in s, ms or µs, whichever suits it; ``-`` if it is unknown."""
    if value is None or not math.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}" if value < 10_000 else f"{value:.0f} s"
    return f"{value / 1e-6:.2g} µs" if value else "0 s"


def rate(value: float) -> str:
    """A rate as a number without an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def size(value: float) -> str:
    """A number of bytes, as MB or GB."""
    if not math.isfinite(value):
        return "-"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def plain(value: Any) -> Any:
    """``value`` in types that JSON has: numbers that are not finite become null, arrays lists."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return dict(zip(fields, map(plain, value), strict=True))
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray):
        return [plain(part) for part in value]
    to_list = getattr(value, "tolist", None)
    return str(value) if to_list is None else plain(to_list())
