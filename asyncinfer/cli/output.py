"""What commands print: JSON for machines, tables for people, one line for an error."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ("emit", "fail", "note", "people", "plain", "rate", "seconds", "table")


def emit(value: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command."""
    print(json.dumps(plain(value), allow_nan=False, ensure_ascii=False), flush=True)


def people() -> Console:
    """Standard output, for people."""
    return Console(highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Tell people something beside the result."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """Print an error on one line of standard error."""
    note(f"asyncinfer: error: {' '.join(text.split())}")


def table(columns: Iterable[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """A plain table: the first column to the left, the others to the right."""
    view = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        view.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        view.add_row(*(Text(str(cell)) for cell in row))
    return view


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None or not math.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}" if value < 10_000 else f"{value:.0f} s"
    return f"{value / 1e-6:.2g} µs" if value else "0 s"


def rate(value: float) -> str:
    """Tasks a second, without an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def plain(value: Any) -> Any:
    """``value`` in what JSON has; what is not finite becomes null, arrays become lists."""
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
