"""How long a device takes, learnt while it works, and how many tasks its calls should have."""

from __future__ import annotations

import math
from collections import deque

from asyncinfer.driver import ServiceTime

__all__ = ("BatchSize", "Estimator")

#: weight of a new sample once there are enough: the gain of RFC 6298's smoothed round-trip time
GAIN = 1 / 8
#: a sample this many times off the estimate is an outlier; two in a row are a new truth
OUTLIER = 3.0
#: part of the mean square of the batch sizes that their variance must be, to tell what each costs
SIZES_DIFFER = 0.02
#: the longest of recent calls counts by so much less with every other call
FADING = 0.997
#: and counts for so many times what was expected at most
LARGEST_PEAK = 64.0
#: shortest time it will claim, in seconds
SHORTEST_CALL = 1e-7

#: part of the rate of full batches that smaller ones must reach, to be used instead
RATE_KEPT = 0.99
#: calls of nearly one size until another size is tried
TRY_ANOTHER = 64


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
        return max(SHORTEST_CALL, self.line.per_batch + self.line.per_task * batch)

    def batch_within(self, seconds: float) -> float:
        """Tasks that one call of so many seconds may have; ``nan`` while unknown."""
        if not self.known:
            return math.nan
        each = max(self.line.per_task, SHORTEST_CALL / 100)
        return (seconds - self.line.per_batch) / each

    def learn(self, batch: float, seconds: float) -> None:
        """Take one call into the estimate."""
        self.given_up = False
        gain = max(GAIN, 1 / (self.samples + 1))
        if self.known:
            ratio = seconds / self.expect(batch)
            if self.ratios is not None:
                self.ratios.append(ratio)
            self.peak = max(min(ratio, LARGEST_PEAK), FADING * self.peak)
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

    def learn_given_up(self, batch: float, seconds: float) -> None:
        """Learn from a call that was given up after so many ``seconds``: it takes longer.

        The second in a row doubles the estimate, as a second time-out does for TCP (RFC 6298).
        """
        if self.given_up:
            self.start_from(ServiceTime(2 * self.line.per_batch, 2 * self.line.per_task))
        else:
            self.learn(batch, seconds)
        self.given_up = True

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
        self.told_apart = spread > SIZES_DIFFER * self._batch_squared
        if spread > 1e-3 * self._batch_squared:
            slope = (self._product - mean * self._seconds) / spread
            slope = min(max(slope, 0.0), self._seconds / mean)
            return ServiceTime(self._seconds - slope * mean, slope)
        before = self.line.per_batch + self.line.per_task * mean
        if before <= 0.0:
            return ServiceTime(0.0, self._seconds / mean)
        scale = self._seconds / before
        return ServiceTime(self.line.per_batch * scale, self.line.per_task * scale)


class BatchSize:
    """The least size that gives (nearly) the rate of full batches, within a target for its time.

    Where calls cost nothing besides their tasks, large batches only make results wait. To know
    what calls cost, calls of different sizes must be seen: now and then one is of half the size.
    What is not known for sure counts as a cost of calls: where they vary, batches stay large.
    """

    def __init__(self, most: int, target: float | None) -> None:
        self._most = most
        self._target = target
        self._worth: float = most
        self._calls_alike = TRY_ANOTHER
        #: most tasks of the next call; one that may take too long is not made before it is known
        self.limit = most if target is None else 1

    def learn(self, estimator: Estimator) -> None:
        """Take in what was learnt of the device since the last time."""
        cost, each = estimator.line
        if not estimator.samples and cost > 0:  # a calibration that has told them apart
            self._worth, self._calls_alike = _worth(cost, each, self._most), 0
        elif estimator.told_apart:  # by half at most, as one look may mislead
            doubt = estimator.deviation * estimator.expect(estimator.batch)
            self._worth = max(_worth(cost + doubt, each, self._most), self._worth / 2)
            self._calls_alike = 0
        else:
            self._calls_alike += 1
        limit = self._worth
        if self._calls_alike > TRY_ANOTHER and (estimator.batch > 2 or limit < 2):
            limit = estimator.batch / 2 if limit >= 2 else 2
            self._calls_alike = 0
        if self._target is not None:
            limit = min(limit, estimator.batch_within(self._target) + 1e-6)
        self.limit = min(self._most, max(1, int(limit)))


def _worth(cost: float, each: float, most: int) -> int:
    """The least b with ``b / (cost + each * b) >= RATE_KEPT * most / (cost + each * most)``."""
    if each <= 0:
        return most
    least = RATE_KEPT * most * cost / (cost + (1 - RATE_KEPT) * each * most)
    return max(1, min(most, math.ceil(least - 1e-6)))
