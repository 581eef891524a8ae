"""How long a device that failed is held off, and when it is trusted again."""

from __future__ import annotations

import math
import random

__all__ = ("Breaker",)

#: pause before the first attempt to open a failed device again, in seconds; doubled by each failure
FIRST_PAUSE = 0.05
#: longest pause, in seconds
LONGEST_PAUSE = 30.0
#: seconds of good service that make up for one loss
FORGIVEN = 10.0
#: losses that count at most, so that an end of them can be forgiven in time
MOST_LOSSES = 10.0


class Breaker:
    """A circuit breaker: counts what a device does wrong, and forgets it while it serves well.

    Losses in service are forgiven by time in service, not by one success. Openings that fail count
    until one succeeds: that is all the proof there is to be had.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._losses = 0.0
        self._attempts = 0
        self._opened_at = math.inf

    def opened(self, now: float) -> None:
        """It was opened."""
        self._attempts = 0
        self._opened_at = now

    def not_opened(self) -> None:
        """An attempt to open it failed."""
        self._attempts += 1

    def lost(self, last_answer: float) -> None:
        """It failed in service. It had served well from its opening to its ``last_answer``."""
        self._losses = min(MOST_LOSSES, self._unforgiven(last_answer) + 1)
        self._opened_at = math.inf

    def failures(self, last_answer: float) -> int:
        """Losses not forgiven yet, and openings that failed since it was last up."""
        return math.ceil(self._unforgiven(last_answer)) + self._attempts

    def _unforgiven(self, last_answer: float) -> float:
        served = max(0.0, last_answer - self._opened_at)
        return max(0.0, self._losses - served / FORGIVEN)

    @property
    def half_open(self) -> bool:
        """Whether it was lost repeatedly, so that it has to prove itself once it is opened."""
        return self._losses > 1

    def pause(self) -> float:
        """Seconds until it may be opened again: at random, from half of what it has earned on."""
        doublings = min(20.0, max(0.0, self._losses + self._attempts - 1))
        earned: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**doublings)
        return earned * self._random.uniform(0.5, 1.0)
