"""Where the results of ``asyncinfer run`` go: CSV, JSON lines, or lines for people."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from asyncinfer._files import emptied
from asyncinfer.cli.output import plain, seconds
from asyncinfer.errors import AsyncInferError, ConfigError, TaskError
from asyncinfer.result import Result

__all__ = ("COLUMNS", "Encoder", "Row", "Write", "encoder", "opened", "row_of", "write_all")

COLUMNS = ("index", "input", "output", "error", "device", "seconds")
SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json")

Row: TypeAlias = dict[str, Any]
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


class Encoder(NamedTuple):
    """How a file of rows is written."""

    #: what it begins with
    head: bytes
    #: one row, with the end of its line
    row: Callable[[Row], bytes]


def encoder(path: Path) -> Encoder:
    """The form that the suffix of ``path`` stands for; ``ConfigError`` if it stands for none."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output {path}: its suffix must be one of {', '.join(SUFFIXES)}")
    if path.suffix != ".csv":
        return Encoder(b"", lambda row: f"{_line(row)}\n".encode())
    return Encoder(_csv(COLUMNS), lambda row: _csv([_cell(row[column]) for column in COLUMNS]))


@contextmanager
def opened(path: Path | None, *, quiet: bool) -> Iterator[Write]:
    """A function that writes rows as they come: to a file by its suffix, or standard output.

    Raises ``ConfigError`` if another program is writing that file.
    """
    if path is None:
        yield _drop if quiet else (_show if sys.stdout.isatty() else _print)
        return
    encode = encoder(path)
    with emptied(path) as file:
        write_all(file, encode.head)
        yield lambda row: write_all(file, encode.row(row))


def write_all(file: FileIO, line: bytes) -> None:
    """All of it, or ``AsyncInferError``: a disk that fills up may take a part first."""
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError as error:
        text = f"cannot write: {error.strerror}; with --resume the same command goes on from there"
        raise AsyncInferError(f"--output {file.name}: {text}") from error


def _csv(cells: Sequence[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


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
