"""Which processes belong to a peer, what they hold, and how they are ended.

On Linux they are found in /proc: by a token in their environment, and as descendants, since some
servers put helpers into process groups of their own or write over their environment. Elsewhere
only the process group is known, and memory is not measured.
"""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress
from pathlib import Path

__all__ = ("TOKEN", "Family")

#: environment variable that marks a peer's processes
TOKEN = "ASYNCINFER_PEER_TOKEN"  # noqa: S105  # a mark, no secret

_PROC = Path("/proc")


class Family:
    """The processes of one peer: the one that was started, and all that it started."""

    def __init__(self, pid: int, token: str) -> None:
        self.pid = pid
        self._mark = f"{TOKEN}={token}".encode()
        #: start time of each process seen, which tells it from a later one of the same number
        self._seen: dict[int, str] = {}

    def look(self) -> set[int]:
        """The processes that live now, remembered for ``kill``."""
        parents = {pid: fields for pid in _pids() if (fields := _stat(pid)) is not None}
        known = {pid for pid, start in self._seen.items() if _start(parents.get(pid)) == start}
        known |= {pid for pid in parents if pid == self.pid or self._marked(pid)}
        while more := {p for p, fields in parents.items() if int(fields[1]) in known} - known:
            known |= more
        known.discard(os.getpid())
        self._seen.update({pid: _start(parents[pid]) for pid in known})
        return {pid for pid in known if parents[pid][0] != "Z"}

    def peak_rss(self) -> float:
        """The most memory that each of them held, added up, in bytes; shared pages count again."""
        sizes = [_high_water(pid) for pid in self.look()]
        return float(sum(sizes)) if sizes else math.nan

    def cpu_seconds(self) -> float:
        """Seconds of CPU time that those alive have taken so far, all cores added up."""
        ticks = [int(f[11]) + int(f[12]) for pid in self.look() if (f := _stat(pid)) is not None]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else math.nan

    def send(self, number: signal.Signals) -> None:
        """Signal its process group, and every process that was seen and still lives."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        for pid in self.look():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _marked(self, pid: int) -> bool:
        try:
            return self._mark in (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            return False


def _pids() -> list[int]:
    if not _PROC.is_dir():
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """State, parent, ... : the fields after the name, which may hold blanks and brackets."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _start(fields: list[str] | None) -> str:
    return fields[19] if fields else ""


def _high_water(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
