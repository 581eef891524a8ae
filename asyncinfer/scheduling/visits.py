"""How calls vary: from one to the next, and more slowly, as the host changes."""

from __future__ import annotations

import math

__all__ = ("Visits",)

#: the standard deviation of logarithms of times that is presumed, and the least
USUAL_SIGMA, LEAST_SIGMA = 0.05, 0.003
#: calls after which a standard deviation is known
ENOUGH = 3
#: calls that the moving mean goes over that tells how fast a set is just now, at least; gain of the
#: one that tells how that changes
FEWEST, GAIN = 32, 1 / 4
#: with so many calls a visit is compared with the one before it
LEAST_CALLS = 8


class Visits:
    """The time for which one set of devices works is a visit to that set; visits follow each other.

    On a host that others use too, calls are not independent of each other: all calls of a fraction
    of a second may be slow, and those of the next one fast. Then a hundred calls of one visit tell
    no more than one call. So two variances are kept apart, as in an analysis by random effects:
    that of calls within a visit, by the differences of successive ones (von Neumann, Annals of
    Mathematical Statistics, 1941), and that of neighbouring visits to the best set, beyond what the
    first explains. All numbers are natural logarithms.
    """

    def __init__(self) -> None:
        #: visits that have ended
        self.count = 0
        #: how far the set that is visited has been off its mean of late
        self.recent = 0.0
        #: how far the best set was off its mean when it was left: what its neighbours are off, too
        self.level = 0.0
        #: how many calls that goes over
        self.memory = FEWEST
        #: calls since the set was chosen, in as many visits; calls of this visit
        self.stay = self.number = 0
        self._squares, self._degrees = 0.0, 0
        self._last: dict[int, float] = {}
        self._sum = 0.0
        #: mean of the visit to the best set before, and its calls
        self._before: tuple[float, int] | None = None
        self._changes = 0.0

    @property
    def sigma(self) -> float:
        """Standard deviation of calls within a visit."""
        if self._degrees < ENOUGH:
            return USUAL_SIGMA
        return max(LEAST_SIGMA, math.sqrt(self._squares / self._degrees))

    @property
    def variance(self) -> float:
        """Of the difference of two neighbouring visits, beyond that of their calls."""
        return max(0.0, 2 * self._changes)

    @property
    def by_chance(self) -> float:
        """Variance of ``recent`` if calls are independent of each other."""
        return self.sigma**2 / (2 * self.memory - 1)

    def remember(self, calls: float) -> None:
        """Have ``recent`` go over so many calls from now on, if these are enough."""
        self.memory = max(FEWEST, int(calls))

    def call(self, place: int, log: float, off: float) -> None:
        """A device's call took ``log``, which is ``off`` its mean."""
        last = self._last.get(place)
        self._last[place] = log
        if last is not None:
            self._squares += min(1.0, (log - last) ** 2 / 2)
            self._degrees += 1
        self.stay += 1
        self.number += 1
        self._sum += off
        self.recent += max(1 / self.memory, 1 / self.stay) * (off - self.recent)

    @property
    def most(self) -> float:
        """How many independent calls a visit is worth, however many it has."""
        return self.sigma**2 / self.variance if self.variance else math.inf

    @property
    def weight(self) -> float:
        """How many independent calls the last call of the visit is worth.

        Those of a visit are worth ``number`` at most, and together no more than the visit itself.
        """
        ratio = self.variance / self.sigma**2
        before, number = self.number - 1, self.number
        return number / (1 + number * ratio) - before / (1 + before * ratio)

    def end(self, *, of_the_best: bool, stays: bool = False) -> None:
        """The visit ends; perhaps the same set ``stays`` for another one."""
        if of_the_best and self.number >= LEAST_CALLS:
            mean = self._sum / self.number
            if self._before is not None:
                explained = self.sigma**2 * (1 / self.number + 1 / self._before[1])
                change = (
                    (mean - self._before[0]) ** 2 - 3 * explained
                ) / 2  # 3: so that it is 0 by chance
                self._changes += GAIN * (change - self._changes)
            self._before = mean, self.number
            shown = self.variance / (self.variance + self.by_chance)
            self.level = shown * self.recent
        self._begin(stays=stays)

    def _begin(self, *, stays: bool) -> None:
        """Another visit begins."""
        self.count += 1
        self.number, self._sum = 0, 0.0
        if not stays:
            self._last.clear()
            self.stay, self.recent = 0, 0.0

    def forget(self) -> None:
        """Means are measured anew from now on."""
        self._before, self.level = None, 0.0
        self._begin(stays=False)
