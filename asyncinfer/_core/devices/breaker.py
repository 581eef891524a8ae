"""How long a failed device backs off before it is opened again, and how failures are forgiven."""

from __future__ import annotations

import math
import random

__all__ = ("Breaker",)

#: longest pause after the first failure, in seconds; each further failure doubles it
FIRST_PAUSE = 0.05
#: longest pause, in seconds
LONGEST_PAUSE = 30.0
#: seconds in service that make up for one loss
FORGIVEN = 10.0
#: most losses that count, so that even a long series of losses is forgiven after a while
MOST_LOSSES = 10.0


class Breaker:
    """A circuit breaker: counts the failures of a device, and forgives them while it serves well.

    A loss while the device was up is forgiven by time in service, not by one success, since a
    device that fails again and again has successes in between. Attempts to open it that failed
    count until one succeeds, as nothing else can show that it opens again.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._losses = 0.0
        self._attempts = 0
        self._opened_at = math.inf

    def opened(self, now: float) -> None:
        """The device was opened."""
        self._attempts = 0
        self._opened_at = now

    def not_opened(self) -> None:
        """An attempt to open the device failed."""
        self._attempts += 1

    def lost(self, last_answer: float) -> None:
        """The device failed while it was up. It had served well until its ``last_answer``."""
        self._losses = min(MOST_LOSSES, self._unforgiven(last_answer) + 1)
        self._opened_at = math.inf

    def failures(self, last_answer: float) -> int:
        """Losses that are not forgiven yet, and failed openings since the device was last up."""
        return math.ceil(self._unforgiven(last_answer)) + self._attempts

    def _unforgiven(self, last_answer: float) -> float:
        served = max(0.0, last_answer - self._opened_at)
        return max(0.0, self._losses - served / FORGIVEN)

    @property
    def half_open(self) -> bool:
        """Whether the device was lost repeatedly: once opened, it has to prove itself first."""
        return self._losses > 1

    def pause(self) -> float:
        """Draw the seconds to wait before it is opened again.

        They are random, from half to all of a time that doubles with each failure, so that devices
        lost together are not opened together.
        """
        doublings = min(20.0, max(0.0, self._losses + self._attempts - 1))
        longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**doublings)
        return longest * self._random.uniform(0.5, 1.0)
