"""How long a device takes, learnt while it works."""

from __future__ import annotations

import math
from collections import deque

from asyncinfer.driver import ServiceTime

__all__ = ("Estimator",)

#: weight of a new sample once there are enough: the gain of RFC 6298's smoothed round-trip time
GAIN = 1 / 8
#: a sample this many times off the estimate is an outlier; two in a row are a new truth
OUTLIER = 3.0
#: part of the mean square of the batch sizes that their variance must be, to tell what each costs
APART = 0.02
#: the longest of recent calls counts by so much less with every other call
FADING = 0.997
#: and counts for so many times what was expected at most
LARGEST = 64.0
#: shortest time it will claim, in seconds
SHORTEST = 1e-7


class Estimator:
    """Exponentially weighted fit of ``seconds = per_batch + per_task * batch``.

    While every batch has the same size the two cannot be told apart: the line then keeps the
    proportions it has and is scaled to the mean.
    """

    def __init__(self) -> None:
        self.known = False
        self.samples = 0
        self.line = ServiceTime(0.0, 0.0)
        #: exponentially weighted mean of |measured / expected - 1|
        self.deviation = 0.0
        #: the most of its recent calls took, as a multiple of what was expected
        self.peak = 0.0
        self._seconds = 0.0
        #: exponentially weighted mean of the batch sizes
        self.batch = 0.0
        self._batch_squared = 0.0
        self._product = 0.0
        self._outlier_side = 0
        #: what recent calls took as a multiple of what was expected, where somebody asks
        self.ratios: deque[float] | None = None
        #: whether the last call was given up because it took too long
        self.given_up = False
        #: whether recent calls differed in size, so that the line's two figures are its own
        self.told_apart = False

    def keep_ratios(self, calls: int) -> None:
        """Remember ``ratios`` from now on, those of so many calls."""
        if self.ratios is None:
            self.ratios = deque(maxlen=calls)

    def start_from(self, line: ServiceTime) -> None:
        """Take a calibration as the truth until the first real call."""
        self.known = True
        self.samples = 0
        self.line = line

    def expect(self, batch: float) -> float:
        """Seconds a call with ``batch`` tasks should take; ``nan`` while unknown."""
        if not self.known:
            return math.nan
        return max(SHORTEST, self.line.per_batch + self.line.per_task * batch)

    def batch_within(self, seconds: float) -> float:
        """Tasks that one call of so many seconds may have; ``nan`` while unknown."""
        if not self.known:
            return math.nan
        each = max(self.line.per_task, SHORTEST / 100)
        return (seconds - self.line.per_batch) / each

    def add(self, batch: float, seconds: float) -> None:
        """Learn from one call."""
        self.given_up = False
        gain = max(GAIN, 1 / (self.samples + 1))
        if self.known:
            ratio = seconds / self.expect(batch)
            if self.ratios is not None:
                self.ratios.append(ratio)
            self.peak = max(min(ratio, LARGEST), FADING * self.peak)
            off = min(1.0, abs(ratio - 1))
            self.deviation += gain * (off - self.deviation)
        if self.samples:
            seconds, gain = self._tamed(batch, seconds, gain)
        self.samples += 1
        self.batch += gain * (batch - self.batch)
        self._seconds += gain * (seconds - self._seconds)
        self._batch_squared += gain * (batch * batch - self._batch_squared)
        self._product += gain * (batch * seconds - self._product)
        self.line = self._fit()
        self.known = True

    def _tamed(self, batch: float, seconds: float, gain: float) -> tuple[float, float]:
        expected = self.expect(batch)
        side = (seconds > expected * OUTLIER) - (seconds * OUTLIER < expected)
        again = side != 0 and side == self._outlier_side
        self._outlier_side = 0 if again else side
        if again:
            self.samples = 0
            return seconds, 1.0
        return min(max(seconds, expected / OUTLIER), expected * OUTLIER), gain

    def _fit(self) -> ServiceTime:
        mean, spread = self.batch, self._batch_squared - self.batch**2
        self.told_apart = spread > APART * self._batch_squared
        if spread > 1e-3 * self._batch_squared:
            slope = (self._product - mean * self._seconds) / spread
            slope = min(max(slope, 0.0), self._seconds / mean)
            return ServiceTime(self._seconds - slope * mean, slope)
        before = self.line.per_batch + self.line.per_task * mean
        if before <= 0.0:
            return ServiceTime(0.0, self._seconds / mean)
        scale = self._seconds / before
        return ServiceTime(self.line.per_batch * scale, self.line.per_task * scale)
