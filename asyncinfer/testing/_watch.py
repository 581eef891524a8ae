"""Finds what a driver must not do: leave things running, or block the event loop."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ("LeftRunning", "Ticker", "is_virtual", "open_files")

#: how often to look whether things that are just ending are gone
_LOOKS = 200
#: seconds between two of these looks
_PAUSE = 0.005
#: seconds between two ticks of the event loop
_TICK = 0.002


def is_virtual(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's time is not the system's clock."""
    return abs(loop.time() - time.monotonic()) > 1.0


class Ticker:
    """Measures the longest time for which the event loop stood still, by a timer that ticks.

    Two things are not counted, as no driver can help them: Python's collection of garbage, which
    takes longer the more objects the whole program has, and the wait for a free processor.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._collecting_since = self._collecting = 0.0

    def __enter__(self) -> Ticker:
        if not is_virtual(self._loop):
            gc.callbacks.append(self._collect)
            self._due = _own_time()
            self._tick()
        return self

    def _tick(self) -> None:
        self._look()
        self._collecting = 0.0
        self._due = _own_time() + _TICK
        self._timer = self._loop.call_later(_TICK, self._tick)

    def _look(self) -> None:
        self.worst = max(self.worst, _own_time() - self._due - self._collecting)

    def _collect(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:  # collecting a young generation takes too little time to count
            return
        if phase == "start":
            self._collecting_since = _own_time()
        else:
            self._collecting += _own_time() - self._collecting_since

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._look()
            self._timer.cancel()
            gc.callbacks.remove(self._collect)


def _own_time() -> float:
    """The clock, in seconds, less the time for which this thread waited for a free processor."""
    return time.monotonic() - _waited()


def _waited() -> float:
    """Seconds for which this thread was ready to run and did not; 0 if the system does not tell."""
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1]) / 1e9
    return 0.0


class LeftRunning:
    """The asyncio tasks, threads and child processes that were started after this was made."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        self._children = _children()

    async def wait_none(self) -> str:
        """Wait until all are gone; return what is left after a while, in words, or nothing."""
        if not self._seen():
            return ""
        shared = await _shared_threads()
        left = list[str]()
        for _ in range(_LOOKS):
            left = [text for text in self._seen() if not text.startswith(shared)]
            if not left:
                return ""
            await asyncio.sleep(_PAUSE)
        return ", ".join(sorted(left))

    def _seen(self) -> list[str]:
        tasks = {t for t in asyncio.all_tasks() if not t.done()} - self._tasks
        threads = set(threading.enumerate()) - self._threads
        return [
            *(f"asyncio task {_name(task)}" for task in tasks - {asyncio.current_task()}),
            *(f"thread {thread.name!r}" for thread in threads),
            *(f"process {child}" for child in _children() - self._children),
        ]


def _name(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()!r} ({getattr(task.get_coro(), '__qualname__', '?')})"


async def _shared_threads() -> tuple[str, ...]:
    """How the descriptions of threads begin that belong to the event loop, not to a driver."""
    shared = ["thread 'AnyIO worker thread"]
    loop = asyncio.get_running_loop()
    if not is_virtual(loop):
        name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
        shared.append(f"thread '{name.rpartition('_')[0]}_")
    return tuple(shared)


def _children() -> set[str]:
    """The child processes that live or were not waited for yet, each by its pid and command."""
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:  # not Linux
        return {f"{child.pid} {child.name}" for child in multiprocessing.active_children()}
    pids = [pid for file in lists for pid in _read(file).split()]
    commands = {pid: _read(Path("/proc", pid, "cmdline")).replace("\0", " ") for pid in pids}
    return {f"{pid} {text}" for pid, text in commands.items() if "resource_tracker" not in text}


def _read(file: Path) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):  # the process ended meanwhile
        return file.read_text(errors="replace")
    return ""


def open_files() -> int:
    """How many file descriptors this process has open; 0 if the system does not tell."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names only
    return 0
