"""What the board says of its own accord, for ``logging``: however much that is."""

from __future__ import annotations

import logging
from collections.abc import Callable

from asyncinfer_drivers.cortex_m.frames import Error, Frame, Log

__all__ = ("BoardLog", "logger")

logger = logging.getLogger("asyncinfer.cortex_m")

#: messages shown in one period, and its seconds
_MOST, _PERIOD = 20, 1.0
#: seconds after which the same message is news again
_NEWS = 60.0


class BoardLog:
    """Logs a LOG at its level, and an ERROR that answers nothing as a warning; nothing else.

    A message said again and again is shown at its 1st, 10th, 100th time and so on. Of many in one
    second the first few are shown, and the others counted.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._last: tuple[int, str] | None = None
        self._times = 0
        self._said_at = 0.0
        self._since = 0.0
        self._shown = self._left_out = 0

    def show(self, frame: Frame) -> None:
        """Log what the board says."""
        if isinstance(frame, Log):
            self._hear(frame.level, frame.text)
        elif isinstance(frame, Error):
            self._hear(logging.WARNING, str(frame))

    def end(self) -> None:
        """Say how much was left out."""
        if self._left_out:
            logger.warning("%s: %d more messages were left out", self._name, self._left_out)
        self._shown = self._left_out = 0

    def _hear(self, level: int, text: str) -> None:
        now = self._clock()
        again = self._last == (level, text) and now - self._said_at < _NEWS
        self._times = self._times + 1 if again else 1
        self._last, self._said_at = (level, text), now
        if str(self._times).strip("0") != "1":
            return
        if now - self._since >= _PERIOD:
            self.end()
            self._since = now
        self._shown += 1
        if self._shown > _MOST:
            self._left_out += 1
        else:
            times = f" ({self._times} times)" if again else ""
            logger.log(level, "%s: %s%s", self._name, text, times)
