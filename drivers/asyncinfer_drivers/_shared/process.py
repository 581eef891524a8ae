"""Processes that a driver starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

__all__ = ("dies_with_us",)


def dies_with_us(arguments: Sequence[str]) -> list[str]:
    """The command, run so that the kernel kills it if this process dies without a clean end."""
    if sys.platform == "linux" and (setpriv := shutil.which("setpriv")):
        return [setpriv, "--pdeathsig", "KILL", "--", *arguments]
    return [*arguments]
