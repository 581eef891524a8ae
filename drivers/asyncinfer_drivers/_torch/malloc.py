"""glibc's malloc thresholds, raised while torch drivers are open.

With its defaults glibc gives the memory of large tensors back to the system when they are freed,
and every page of the next ones is faulted in anew: often the larger part of the time of a batch.
Raised, freed memory stays with the process and is used again.

Nothing is done where the C library is another, or where the environment says how malloc should
be (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
from typing import Any

__all__ = ("hold", "release")

logger = logging.getLogger("asyncinfer.torch")

#: parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: bytes: larger than any tensor of one batch; what older releases take at most; the default
_RAISED, _RAISED_OLD, _DEFAULT = 1 << 30, 32 << 20, 128 << 10

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
    return ctypes.CDLL(None)
