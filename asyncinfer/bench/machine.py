"""What a benchmark ran on: no path and no host name, so that it may be published."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ("PACKAGES", "machine", "threads", "versions")

#: packages whose versions matter to the figures
PACKAGES = ("asyncinfer", "torch", "numpy", "uvloop", "anyio")


def machine() -> dict[str, Any]:
    """The computer and how busy it is."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "memory_bytes": _memory(),
        "system": f"{_system()}, {platform.machine()}",
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str | None]:
    """The interpreter's and the packages' versions; ``None`` for what is not installed."""
    found: dict[str, str | None] = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})"
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def threads() -> Mapping[str, Any]:
    """Threads that torch uses now, if it was imported, and what the environment asks for."""
    torch = sys.modules.get("torch")
    return {
        "torch_intra_op": torch.get_num_threads() if torch else None,
        "torch_inter_op": torch.get_num_interop_threads() if torch else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux
        return f"{platform.system()} {platform.release()}"


def _usable_cores() -> int | None:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
