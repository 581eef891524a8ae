"""The main program in a driver's process: imported once something that it defines is sent there."""

from __future__ import annotations

import multiprocessing.spawn
import sys
from multiprocessing.spawn import get_preparation_data
from typing import Any

from asyncinfer.errors import ConfigError

__all__ = ("MAIN", "MainProgram", "described", "importing")

#: what Python calls the main program: in it, and where ``multiprocessing`` has imported it
MAIN = ("__main__", "__mp_main__")

_REMEDY = (
    "put it into a module of its own, which both import, "
    "and what runs in the main program under if __name__ == '__main__':"
)

_importing = False


def importing() -> bool:
    """Whether this is a driver's process at the import of the main program.

    A program without ``if __name__ == "__main__":`` would start a driver there as well, whose
    process would do the same, and so on.
    """
    return _importing


def described() -> dict[str, Any]:
    """Where to find this process's main program; empty for a prompt or a notebook."""
    whole = get_preparation_data("asyncinfer")
    return {key: whole[key] for key in whole if key.startswith("init_main")}


class MainProgram:
    """Imports the parent's main program when first asked."""

    def __init__(self, where: dict[str, Any]) -> None:
        self._where = where
        self._imported = False

    def find(self, name: str) -> Any:
        """What the main program calls ``name``; ``ConfigError`` if it cannot be had."""
        self.load()
        found: Any = sys.modules["__main__"]
        try:
            for part in name.split("."):
                found = getattr(found, part)
        except AttributeError:
            raise ConfigError(
                f"{name!r} is defined in the main program, where the driver's process does not "
                f"find it: {_REMEDY}"
            ) from None
        return found

    def load(self) -> None:
        """Import it, once; ``ConfigError`` if it fails."""
        global _importing  # of the whole process, as the main program is
        if self._imported or not self._where:
            return
        self._imported = _importing = True
        try:
            multiprocessing.spawn.prepare(self._where)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"the driver's process needs what the main program defines, and cannot import it "
                f"({text}): {_REMEDY}"
            ) from error
        finally:
            _importing = False
