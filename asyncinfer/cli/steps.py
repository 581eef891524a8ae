"""What a long command is doing, on standard error."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from asyncinfer.cli.output import note

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ("Steps",)

#: seconds after which a step is told of, and between two lines
_PERIOD = 1.0


class Steps:
    """Call it with a step, or with a step, a colon and how far that is.

    A terminal shows the latest in place. Elsewhere steps that last over a second get a line, and
    another for each second that they get on.
    """

    def __init__(self) -> None:
        self._text = self._told = self._step = ""
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._status: Status | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Steps:
        if sys.stderr.isatty():
            self._status = Console(stderr=True).status("")
            self._status.start()
        else:
            self._thread = threading.Thread(target=self._watch, name="asyncinfer steps")
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._status:
            self._status.stop()
        if self._thread:
            self._thread.join()

    def __call__(self, text: str) -> None:
        """Say that ``text`` is being done now."""
        self._text = text
        if self._status:
            self._status.update(Text(text))
        step = text.partition(":")[0]
        if step != self._step:
            self._step, self._since = step, time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD):
            if self._text != self._told and time.monotonic() - self._since >= _PERIOD:
                self._told = self._text
                note(self._text)
