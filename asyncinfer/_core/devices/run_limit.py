"""How long a device may be silent before it counts as lost, if nobody has set a limit."""

from __future__ import annotations

__all__ = ("HISTORY", "NOTEWORTHY", "RunLimit")

#: calls that a device must have answered before it can be lost by its silence: so many make the
#: estimate a mean of its own (``speed.GAIN``)
HISTORY = 8
#: shortest silence by which a device is lost, in seconds. Packets lost in a row on a bad line, a
#: collection of garbage or a page that was swapped out take less
LEAST = 2.0
#: a device is lost after a silence of this many times the bearable one, at which it is suspect
BEYOND_SUSPICION = 4.0
#: and not before this many times the longest call that it has come back from
LONGEST_AGAIN = 2.0
#: seconds in which that call comes to count half as much
HALF_LIFE = 60.0
#: only calls longer than this change anything, in seconds
NOTEWORTHY = LEAST / LONGEST_AGAIN


class RunLimit:
    """The limit of one device. It remembers the longest call, so as not to fire wrongly twice.

    A call that was cut off counts as one that would have taken twice as long. So the next limit is
    four times this one, as the timers of TCP back off (RFC 6298), until time has passed.
    """

    __slots__ = ("_at", "_longest")

    def __init__(self) -> None:
        self._longest = 0.0
        self._at = 0.0

    def took(self, seconds: float, now: float) -> None:
        """A call took so long."""
        if seconds > self._remembered(now):
            self._longest, self._at = seconds, now

    def cut_off(self, seconds: float, now: float) -> None:
        """A call was cut off after so long."""
        self.took(2 * seconds, now)

    def seconds(self, bearable: float, now: float) -> float:
        """The silence by which the device is lost, where so much is ``bearable``."""
        return max(LEAST, BEYOND_SUSPICION * bearable, LONGEST_AGAIN * self._remembered(now))

    def _remembered(self, now: float) -> float:
        return float(self._longest * 0.5 ** (max(0.0, now - self._at) / HALF_LIFE))
