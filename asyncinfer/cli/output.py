"""What commands print: JSON for machines, tables for people, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncinfer._text import plain, rate, seconds

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
