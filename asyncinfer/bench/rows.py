"""The CSV of a benchmark: one row a run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncinfer._files import emptied
from asyncinfer._text import plain
from asyncinfer.bench.record import Run

__all__ = ("COLUMNS", "opened", "row_of")

#: the columns, in order
COLUMNS = tuple(field.name for field in dataclasses.fields(Run))


def row_of(run: Run) -> list[Any]:
    """The cells of one run: empty where not measured, JSON where there are several values."""
    return [_cell(getattr(run, column)) for column in COLUMNS]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    if isinstance(value, Mapping):
        return json.dumps(plain(value), ensure_ascii=False)
    return value if isinstance(value, str | int) else ";".join(map(str, value))


@contextmanager
def opened(path: Path | None) -> Iterator[Callable[[Iterable[Run]], None]]:
    """A function that appends runs to a new file, at once; or drops them if there is none.

    Raises ``ConfigError`` if another program is writing that file.
    """
    if path is None:
        yield lambda runs: None
        return
    with io.TextIOWrapper(io.BufferedWriter(emptied(path)), "utf-8", newline="") as file:
        writer = csv.writer(file)

        def write(runs: Iterable[Run]) -> None:
            writer.writerows(map(row_of, runs))
            file.flush()

        writer.writerow(COLUMNS)
        file.flush()
        yield write
