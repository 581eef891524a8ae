"""glibc's malloc thresholds, raised while torch drivers are open.

With its defaults glibc gives the memory of large tensors back to the system when they are freed,
and every page of the next ones is faulted in anew: often the larger part of the time of a batch.
Raised, freed memory stays with the process and is used again.

That is not enough in threads. They get their memory in heaps of 64 MiB, and a heap in which nothing
is used is unmapped whatever the thresholds say. So ``keep_heaps`` leaves a few bytes in some heaps.

Nothing is done where the C library is another, or where the environment says how malloc should
be (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
from collections.abc import Iterable
from typing import Any

__all__ = ("free", "hold", "keep_heaps", "release", "trim")

logger = logging.getLogger("asyncinfer.torch")

#: parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: the thresholds while they are raised, in bytes: larger than any tensor of one batch
_RAISED = 1 << 30
#: the same for older releases of glibc, which refuse more
_RAISED_OLD = 32 << 20
#: what glibc starts with, in bytes
_DEFAULT = 128 << 10

#: bytes of a piece: two of them fill one heap of a thread
_PIECE = 63 << 19
#: pieces to take: four heaps' worth
_PIECES = 8
#: bytes of each piece that stay in use, so that its heap stays mapped
_PIECE_LEFT = 4096

#: environment variables by which users set the same
_SETTINGS = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}

_lock = threading.Lock()
_holders = 0


def hold() -> bool:
    """Raise the thresholds, unless they are raised already; whether they are now.

    Each call that returned true needs one ``release``.
    """
    global _holders
    with _lock:
        if _holders == 0 and not _set(_RAISED, _RAISED_OLD):
            return False
        _holders += 1
        return True


def release() -> None:
    """Undo one ``hold``. With the last one, 128 KiB apply again and free memory is given back.

    That is what glibc starts with. It cannot be told to adjust them by itself again.
    """
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0:
            _set(_DEFAULT, _DEFAULT)
            libc = _glibc()
            if libc is not None:
                libc.malloc_trim(0)


def trim() -> None:
    """Give free memory back though the thresholds are raised: of copies that are needed no more.

    What the next batches need is faulted in once more.
    """
    libc = _glibc() if _holders else None
    if libc is not None:
        libc.malloc_trim(0)


def keep_heaps() -> list[int]:
    """Give the calling thread heaps that stay mapped; what to ``free`` when it needs none any more.

    They take address space, and memory as far as it is used. Without this, a thread whose tensors
    need more than one heap may spend most of its time on page faults.
    """
    libc = _glibc()
    if libc is None:
        return []
    pieces = [piece for piece in (libc.malloc(_PIECE) for _ in range(_PIECES)) if piece]
    return [libc.realloc(piece, _PIECE_LEFT) or piece for piece in pieces]  # shrunk in place


def free(kept: Iterable[int]) -> None:
    """Free what ``keep_heaps`` left, in any thread."""
    libc = _glibc()
    if libc is not None:
        for piece in kept:
            libc.free(piece)


def _set(value: int, fallback: int) -> bool:
    libc = _glibc()
    if libc is None:
        return False
    large = libc.mallopt(_MMAP_THRESHOLD, value) or libc.mallopt(_MMAP_THRESHOLD, fallback)
    done = bool(large and libc.mallopt(_TRIM_THRESHOLD, value))
    logger.debug("malloc keeps up to %d bytes: %s", value, "done" if done else "refused")
    return done


def _glibc() -> Any:
    """The C library, if it is glibc and the environment does not set it."""
    if platform.libc_ver()[0] != "glibc" or _SETTINGS.intersection(os.environ):
        return None
    libc = ctypes.CDLL(None)  # an object of our own: types set on its functions hold for it alone
    libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
