"""Brings a firmware from the cache to a folder of the user's, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware

try:
    import fcntl
except (
    ImportError
):  # pragma: no cover  # on Windows, where builds for one folder take turns unaided
    fcntl = None  # type: ignore[assignment]

__all__ = ("delivered", "scratch_folder", "writable")

#: seconds after which a build that has not ended was killed
_DAY = 86_400
_SCRATCH = "building-"


def delivered(made: Firmware, folder: Path) -> Firmware:
    """``made`` copied to ``folder``; ``ConfigError`` if that cannot be written."""
    folder = folder.expanduser().absolute()
    copied = replace(made, directory=folder)
    with writable(folder, "give another folder"), _alone(folder):
        copied.forget()  # until all of it is there: else it would be of one firmware, the rest not
        shutil.rmtree(copied.generated, ignore_errors=True)
        shutil.copytree(made.generated, copied.generated)
        for file in made.directory.iterdir():
            # a library of the same name is the same, and this process may run in it
            if file.is_file() and not (file.suffix == ".so" and (folder / file.name).exists()):
                shutil.copyfile(file, folder / file.name)
        copied.save()
    return copied


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """An empty folder next to ``beside``, gone afterwards; so are those of killed builds."""
    with writable(beside.parent, "let XDG_CACHE_HOME name a folder that can be written"):
        for left in beside.parent.glob(f"{_SCRATCH}*"):
            with suppress(OSError):  # another build removes it
                if left.stat().st_mtime < time.time() - _DAY:
                    shutil.rmtree(left)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=beside.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def writable(folder: Path, remedy: str) -> Iterator[None]:
    """``folder``, made if it is not there; errors of files become ``ConfigError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise ConfigError(f"cannot write a firmware to {folder}: {what}: {remedy}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other build copies to ``folder`` meanwhile: all files there are the last one's."""
    if fcntl is None:  # pragma: no cover
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
