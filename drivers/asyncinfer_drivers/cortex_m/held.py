"""File descriptors that a forked process must not keep: those of ports that one process holds.

A forked process shares the open file, its lock with it: were it to keep it, the port would stay
locked after its owner has closed it or was killed. Programs that are started by ``exec`` get none
of them: Python opens files so.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

__all__ = ("hang_up", "hold", "let_go", "unlock")

#: by number, what it was: it may have been closed without a word, and mean another file by now
_held: dict[int, tuple[int, int, int]] = {}


def hold(fd: int) -> None:
    """Have ``fd`` be nothing in processes that are forked from now on."""
    _held[fd] = _identity(fd)


def let_go(fd: int) -> None:
    """``fd`` is about to be closed, and its number is free for others. Idempotent."""
    _held.pop(fd, None)


def _identity(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_rdev


def unlock(fd: int) -> None:
    """Free the lock on ``fd``, whoever else has it open."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def hang_up(fd: int) -> None:
    """End the connection of a socket, whoever else has it open."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as same:
        same.shutdown(socket.SHUT_RDWR)


def _forget() -> None:
    """In a forked process: put nothing in their places, as their owners may yet close them."""
    held = dict(_held)
    _held.clear()
    for fd, identity in held.items():
        with suppress(OSError):
            if _identity(fd) == identity:
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, fd, inheritable=False)
                os.close(nothing)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
