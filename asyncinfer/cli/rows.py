"""Where the results of ``asyncinfer run`` go: CSV, JSON lines, or lines for people."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from asyncinfer.cli.output import plain, seconds
from asyncinfer.errors import ConfigError, TaskError
from asyncinfer.result import Result

__all__ = ("COLUMNS", "Row", "Write", "opened", "row_of")

COLUMNS = ("index", "input", "output", "error", "device", "seconds")
SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json")

Row: TypeAlias = Mapping[str, Any]
Write: TypeAlias = Callable[[Row], None]


def row_of(name: str, result: Result[Any]) -> Row:
    """One result as it is written."""
    return {
        "index": result.index,
        "input": name,
        "output": plain(result.value),
        "error": reason(result.error),
        "device": result.device,
        "seconds": plain(result.finished - result.started),
    }


def reason(error: TaskError | None) -> str | None:
    """What a task failed of, without what its row says anyway."""
    if error is None:
        return None
    cause = error.causes[-1] if error.causes else None
    text = " ".join(str(cause if cause is not None and str(cause) else error).split())
    return error.message or text


@contextmanager
def opened(path: Path | None, *, quiet: bool) -> Iterator[Write]:
    """A function that writes rows as they come: to a file by its suffix, or standard output."""
    if path is None:
        yield _drop if quiet else (_show if sys.stdout.isatty() else _print)
        return
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output {path}: its suffix must be one of {', '.join(SUFFIXES)}")
    with path.open("w", encoding="utf-8", newline="", buffering=1) as file:
        if path.suffix != ".csv":
            yield lambda row: print(_line(row), file=file)
            return
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        yield lambda row: writer.writerow([_cell(row[column]) for column in COLUMNS])


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _drop(row: Row) -> None:
    del row


def _print(row: Row) -> None:
    print(_line(row), flush=True)


def _show(row: Row) -> None:
    result = f"error: {row['error']}" if row["error"] else _cell(row["output"])
    taken = seconds(row["seconds"]) if row["seconds"] is not None else ""
    text = result if len(str(result)) <= 60 or row["error"] else f"{str(result)[:59]}…"
    print(f"{row['index']:>6}  {row['input']}  {text}  ({row['device']} {taken})", flush=True)
