"""One timer that rings once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ("Alarm",)


class Alarm:
    """Calls ``ring`` once, at the earliest moment it was set to; then it can be set again."""

    __slots__ = ("_at", "_loop", "_ring", "_timer", "late")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        #: when the timer fires: uvloop's timer handles know that only to the millisecond
        self._at = 0.0
        #: by how many seconds it rang too late
        self.late = 0.0

    @property
    def is_set(self) -> bool:
        """Whether the alarm is going to ring."""
        return self._timer is not None

    def within(self, seconds: float) -> bool:
        """Ring after ``seconds`` at the latest; return whether the timer had to be set for that."""
        at = self._loop.time() + seconds
        if self._timer is not None:
            if self._at <= at:
                return False
            self._timer.cancel()
        self._timer, self._at = self._loop.call_later(seconds, self._rings), at
        return True

    def cancel(self) -> None:
        """Do not ring, unless the alarm is set again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _rings(self) -> None:
        self._timer = None
        self.late = max(0.0, self._loop.time() - self._at)
        self._ring()
