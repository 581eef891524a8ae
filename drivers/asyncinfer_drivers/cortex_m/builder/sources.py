"""Where the firmware's C sources are, in a checkout and in an installed package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from asyncinfer.errors import ConfigError

__all__ = ("digest", "firmware_sources")

_PACKAGE = Path(__file__).resolve().parents[1]


def firmware_sources() -> Path:
    """The folder with ``src``, ``boards`` and ``include``."""
    for folder in (_PACKAGE / "_firmware", _PACKAGE.parents[1] / "firmware"):
        if (folder / "src").is_dir():
            return folder
    raise ConfigError("this installation lacks the firmware's C sources; install asyncinfer anew")


def digest() -> str:
    """Changes with any file that a firmware is made from, the built-in models included."""
    folders = (firmware_sources(), _PACKAGE / "builder", _PACKAGE.parent / "models")
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".c", ".h", ".ld", ".py", ".npz"):
                found.update(path.relative_to(folder).as_posix().encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
