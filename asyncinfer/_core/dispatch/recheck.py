"""Has resting devices asked again, as the policy's answer may change by time alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.devices.roster import Roster
from asyncinfer.scheduling.earliest_finish import MANY

__all__ = ("Recheck",)

#: shortest time until resting devices are asked again, in seconds
SHORTEST_PAUSE = 0.0005
#: with MANY devices, look again after the time in which this many completions were due
DUE_COMPLETIONS = 8


class Recheck:
    """A timer that causes another pass if nothing else does.

    A device rests because others should be done sooner. If one of those is overdue, it may never
    finish; then nothing happens that would cause a pass, and yet the resting device is needed.
    """

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
        #: whether no pass was made between the setting and the ringing of the timer
        self._nothing_happened = False

    def passed(self, rest: bool) -> None:
        """A pass was made, and left some free devices at ``rest`` though tasks wait, or none."""
        self._passes += 1
        if rest:
            self.within(max(SHORTEST_PAUSE, self._patience()))
        self._nothing_happened = False

    def within(self, seconds: float) -> None:
        """Cause another pass after ``seconds`` at the latest."""
        if self._alarm.within(seconds):
            self._passes_then = self._passes

    def _patience(self) -> float:
        """Seconds until some device should have finished its call.

        With ``MANY`` devices this is worked out from the rate of all, without a look at each.
        """
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
        """Cause no pass any more."""
        self._alarm.cancel()
