"""Has devices that rest asked again when time alone may have changed the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.devices.roster import Roster
from asyncinfer.scheduling.earliest_finish import MANY

__all__ = ("Recheck",)

#: shortest pause, in seconds
SHORTEST_PAUSE = 0.0005
#: with MANY devices, look again after the time in which this many completions were due
DUE_COMPLETIONS = 8


class Recheck:
    """A timer for when nothing else happens: a device that is overdue may never finish."""

    def __init__(
        self,
        roster: Roster,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        again: Callable[[], None],
    ) -> None:
        self._roster = roster
        self._clock = clock
        self._again = again
        self._alarm = Alarm(loop, self._ring)
        self._passes = 0
        self._passes_then = 0
        #: whether no pass was made from when the timer was set until it rang
        self._nothing_happened = False

    def passed(self, rest: bool) -> None:
        """Free devices have been asked, and some of them ``rest`` though tasks wait."""
        self._passes += 1
        if rest:
            self.within(max(SHORTEST_PAUSE, self._patience()))
        self._nothing_happened = False

    def within(self, seconds: float) -> None:
        """Ask again after so many seconds at the latest."""
        if self._alarm.within(seconds):
            self._passes_then = self._passes

    def _patience(self) -> float:
        """Seconds until some device should have finished: of many, without a look at each."""
        roster = self._roster
        if len(roster.up) >= MANY and not self._nothing_happened and roster.census.rate > 0:
            return DUE_COMPLETIONS / roster.census.rate
        now = self._clock()
        busy = [burst.remaining(now) for device in roster.up for burst in device.bursts]
        return 1.1 * min(busy, default=SHORTEST_PAUSE)

    def _ring(self) -> None:
        self._nothing_happened = self._passes == self._passes_then
        if self._nothing_happened:
            self._roster.doubt_all(self._clock())
        self._again()

    def cancel(self) -> None:
        """Ask no more."""
        self._alarm.cancel()
