"""The live table of a run, on standard error, when that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from asyncinfer.cli.output import seconds, table
from asyncinfer.cli.tools import remarks
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.stats import DispatcherStats

__all__ = ("Progress",)

#: seconds between two pictures
_PERIOD = 0.2


class Progress:
    """Call it after each result; it draws five times a second, or never if ``shown`` is false."""

    def __init__(self, total: int | None, *, shown: bool) -> None:
        self._total = total
        self._next = 0.0
        self._live: Live | None = None
        if shown and sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, dispatcher: Dispatcher[Any, Any]) -> None:
        """Draw the state of ``dispatcher`` if it is time to."""
        if self._live and time.monotonic() >= self._next:
            self._live.update(view(dispatcher.stats(), self._total), refresh=True)
            self._next = time.monotonic() + _PERIOD


def view(stats: DispatcherStats, total: int | None) -> Group:
    """How far the run is, and what each device does."""
    of = f" of {total}" if total is not None else ""
    head = f"{stats.finished}{of} done, {stats.throughput:.4g} tasks/s, {stats.failed} failed"
    rows = [
        (
            device.name,
            device.state if device.rests is None else "rests",
            device.tasks,
            f"{device.tasks / stats.elapsed:.4g}" if stats.elapsed else "-",
            f"{device.utilisation:.0%}",
            seconds(device.service_time),
        )
        for device in stats.devices
    ]
    columns = ("device", "state", "tasks", "tasks/s", "utilisation", "service time")
    return Group(Text(head), table(columns, rows), *map(Text, remarks(stats.devices)))
