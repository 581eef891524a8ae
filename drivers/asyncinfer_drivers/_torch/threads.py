"""Intra-op threads: the host's cores divided among the torch drivers that compute on them.

What ``torch.set_num_threads(n)`` does, as measured on Linux with the OpenMP build (the PyPI
wheels) by the ratio of process to thread CPU time of MKL, oneDNN and ATen kernels:

- it binds the calling thread, and becomes the default of threads that have not asked yet;
- other threads that have asked keep theirs: drivers with different counts do not disturb one
  another, and neither the main thread;
- a thread "asks" at its first ``get_num_threads`` or parallel kernel, which overwrites what
  ``set_num_threads`` set before in that thread. So ``get_num_threads`` has to come first.

``bind`` does it in that order and puts the default of later threads back. On a build without
OpenMP the count is the whole process's and the last driver that opened wins.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch

__all__ = ("CoreShare", "Crew", "Share", "bind", "every_core", "quota", "usable_cores")

T = TypeVar("T")


class Share(Protocol):
    """Says how many intra-op threads a driver is due."""

    @property
    def threads(self) -> int:
        """That many, now."""
        ...

    @property
    def most(self) -> int:
        """As many, if none is left to the event loop."""
        ...


class CoreShare:
    """One host driver's claim to cores, from ``join`` to ``leave``.

    ``fixed`` threads are taken first; the drivers without a fixed number share the rest equally,
    at least one each. Shares move as drivers come and go: read ``threads`` before every call.
    """

    _open: ClassVar[list[CoreShare]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, fixed: int | None, cores: int, every: int | None = None) -> None:
        self._fixed = fixed
        self._cores = cores
        self._every = max(cores, every or 0)

    def join(self) -> None:
        """Count this driver in."""
        with self._lock:
            if self not in self._open:
                self._open.append(self)

    def leave(self) -> None:
        """Count it out; harmless if it is not in."""
        with self._lock:
            if self in self._open:
                self._open.remove(self)

    @property
    def threads(self) -> int:
        """Intra-op threads this driver is due now."""
        return self._part_of(self._cores)

    @property
    def most(self) -> int:
        """Those it would be due if the event loop had no core to itself."""
        return self._part_of(self._every)

    def _part_of(self, cores: int) -> int:
        if self._fixed is not None:
            return self._fixed
        with self._lock:
            fixed = sum(share._fixed or 0 for share in self._open)
            sharing = sum(share._fixed is None for share in self._open)
        return max(1, (cores - fixed) // max(1, sharing))


class Crew:
    """The threads of one driver's calls: its share, or a number that was found to be faster.

    What was found holds as long as the share stays the same.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._found: tuple[tuple[int, int], int] | None = None

    @property
    def threads(self) -> int:
        """As many as the next call should have."""
        if self._found is not None and self._found[0] == self._due():
            return self._found[1]
        return self._share.threads

    @property
    def most(self) -> int:
        """As many as it may have."""
        return self._share.most

    @property
    def due(self) -> int:
        """Its share, whatever was found."""
        return self._share.threads

    @property
    def others(self) -> list[int]:
        """Numbers to be tried beside the present one."""
        threads, most = self._due()
        several = {1, threads, most} if most > 1 and threads != most else {threads}
        return sorted(several - {self.threads})

    def choose(self, threads: int) -> None:
        """Take that many from now on."""
        self._found = self._due(), threads

    def _due(self) -> tuple[int, int]:
        return self._share.threads, self._share.most


_default_lock = threading.Lock()


def bind(threads: int) -> None:
    """Make torch use ``threads`` intra-op threads in the calling thread, and in no other."""
    if torch.get_num_threads() == threads:
        return
    with _default_lock:
        default = _elsewhere(torch.get_num_threads)
        torch.set_num_threads(threads)
        if torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
            _elsewhere(lambda: torch.set_num_threads(default))


def _elsewhere(function: Callable[[], T]) -> T:
    """Call it in a new thread, which has no settings of its own."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def usable_cores() -> int:
    """Cores for torch: those this process may use but one, which is the event loop's; at least 1.

    Limits are torch's default, CPU affinity and the container's quota. Without a core of its own
    the loop stutters, and threads that wait for one another at the end of every operation, on a
    core short, slow a small model down a hundred times.

    Call it in a thread that has not set its own number. torch's default counts physical cores and
    follows ``OMP_NUM_THREADS`` and ``torch.set_num_threads`` in the main program.
    """
    return max(1, every_core() - 1)


def every_core() -> int:
    """All cores that torch may use, the event loop's included."""
    limits = [torch.get_num_threads()]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    limits.append(quota(Path("/sys/fs/cgroup/cpu.max")) or limits[0])
    return min(limits)


def quota(file: Path) -> int | None:
    """Whole cores that a cgroup v2 ``cpu.max`` file grants, at least 1; ``None`` for no limit."""
    try:
        granted, period = file.read_text().split()
        return max(1, int(granted) // int(period))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return None
