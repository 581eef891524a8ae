"""A file of rows that outlives the program: what is in it is kept, and the rest added.

Rows are whole lines in the order of their index. Each is handed to the system as it comes, so
that it survives the program; once a second all are forced to the disk, so that they survive the
machine. A row that was cut off is taken out and done again.
"""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from asyncinfer._files import lock
from asyncinfer.cli.rows import COLUMNS, Write, encoder, write_all
from asyncinfer.errors import AsyncInferError, ConfigError

__all__ = ("Resumed", "resumed")

#: seconds between two moments at which all rows are forced to the disk
GROUP = 1.0


class Resumed(NamedTuple):
    """An output file that is open for the rows it lacks."""

    #: rows that it has already
    rows: int
    write: Write


@contextmanager
def resumed(path: Path, names: Iterable[str]) -> Iterator[Resumed]:
    """Open ``path`` for the rows it lacks of the inputs ``names``; a new file if there is none.

    Raises ``ConfigError`` if it holds rows of other inputs, or another program is writing it, and
    ``AsyncInferError`` for rows that could not be forced to the disk.
    """
    encode = encoder(path)
    with path.open("r+b" if path.exists() else "x+b", buffering=0) as file:
        lock(file, path)
        rows, end = _kept(file, path, iter(names))
        file.truncate(end)
        file.seek(end)
        if end == 0:
            write_all(file, encode.head)
            _sync_folder(path)
        with _forced_to_disk(file, path):
            yield Resumed(rows, lambda row: write_all(file, encode.row(row)))


# ---- what is there


def _kept(file: FileIO, path: Path, names: Iterator[str]) -> tuple[int, int]:
    """How many whole rows in order the file begins with, and where they end."""
    lines = iter(file.readline, b"")
    rows = end = 0
    parse: Callable[[bytes], tuple[int, str] | None] = _of_json
    if path.suffix == ".csv":
        records = _records(lines)
        head = next(records, b"")
        if not head.endswith(b"\n"):
            return 0, 0
        if _cells(head) != list(COLUMNS):
            raise ConfigError(f"--output {path}: is no file of this program; choose another")
        end, lines, parse = len(head), records, _of_csv
    for line in lines:
        found = parse(line) if line.endswith(b"\n") else None
        if found is None or found[0] != rows:
            break
        _check(path, rows, found[1], next(names, None))
        rows, end = rows + 1, end + len(line)
    return rows, end


def _check(path: Path, index: int, found: str, name: str | None) -> None:
    if found != name:
        here = "this run has no such row" if name is None else f"in this run it is {name!r}"
        text = f"row {index} is of the input {found!r}, {here}"
        raise ConfigError(f"--output {path}: {text}; give the inputs it was begun with")


def _records(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines put together to rows: a quoted cell may hold line breaks."""
    record = b""
    for line in lines:
        record += line
        if record.count(b'"') % 2 == 0:
            yield record
            record = b""
    if record:
        yield record.rstrip(b"\n")  # it was cut off within a cell


def _cells(record: bytes) -> list[str]:
    return next(csv.reader([record.decode(errors="replace")], strict=False), [])


def _of_csv(record: bytes) -> tuple[int, str] | None:
    cells = _cells(record)
    if len(cells) != len(COLUMNS) or not cells[0].isdecimal():
        return None
    return int(cells[0]), cells[1]


def _of_json(line: bytes) -> tuple[int, str] | None:
    try:
        row: Any = json.loads(line)
        return row["index"], row["input"]
    except (ValueError, TypeError, KeyError):
        return None


# ---- the disk


@contextmanager
def _forced_to_disk(file: FileIO, path: Path) -> Iterator[None]:
    """Force rows to the disk now and then, in a thread: it may take long. And at the end."""
    ended, failed = threading.Event(), list[OSError]()

    def keep() -> None:
        try:
            while not ended.wait(GROUP):
                os.fsync(file.fileno())
            os.fsync(file.fileno())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=keep, name=f"sync {path.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise AsyncInferError(f"--output {path}: not all rows reached the disk: {failed[0]}")


def _sync_folder(path: Path) -> None:
    """So that the file's name, too, survives the machine."""
    with suppress(OSError):  # not every system has this
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
