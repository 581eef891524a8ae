"""Files that one program alone writes."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from asyncinfer.errors import ConfigError

__all__ = ("emptied", "lock")


def emptied(path: Path) -> FileIO:
    """Open ``path`` to be written from its beginning, and keep others from doing so meanwhile.

    Raises ``ConfigError``, and leaves what is in it as it is, if another program writes it.
    """
    file = FileIO(path, "w", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o666))
    try:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # no pipe, no device
            lock(file, path)
            file.truncate()
    except BaseException:
        file.close()
        raise
    return file


def lock(file: FileIO, path: Path) -> None:
    """Only one program at a time; the lock ends with the program, however it ends.

    Raises ``ConfigError`` if another one has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"--output {path}: another run is writing it: {error}") from error
