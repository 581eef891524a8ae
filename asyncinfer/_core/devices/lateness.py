"""How late the event loop was: silence in which nobody could have listened is no silence."""

from __future__ import annotations

from bisect import bisect_right

__all__ = ("PUNCTUAL", "Lateness")

#: a timer that rings so many seconds late is nothing unusual
PUNCTUAL = 0.02
#: how many late rings are remembered; older ones count as one
MOST_KEPT = 256


class Lateness:
    """Adds up by how much a timer that rings all the time was late."""

    def __init__(self) -> None:
        #: when the timer rang late, and the seconds of all late rings before each of them
        self._moments: list[float] = []
        self._before: list[float] = []
        self._total = 0.0

    def note(self, now: float, seconds: float) -> bool:
        """The timer rings, ``seconds`` late; return whether that is worth mentioning."""
        if seconds <= PUNCTUAL:
            return False
        self._moments.append(now)
        self._before.append(self._total)
        self._total += seconds
        if len(self._moments) > MOST_KEPT:
            del self._moments[: MOST_KEPT // 2], self._before[: MOST_KEPT // 2]
        return True

    def since(self, moment: float) -> float:
        """Seconds by which the loop was late after ``moment``, as far as that was seen."""
        at = bisect_right(self._moments, moment)
        return self._total - self._before[at] if at < len(self._moments) else 0.0
