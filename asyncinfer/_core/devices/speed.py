"""How long a device's calls take, learnt from its calls, and how many tasks a call should have."""

from __future__ import annotations

import math
from collections import deque

from asyncinfer.driver import ServiceTime

__all__ = ("BatchSize", "Estimator")

#: weight of a new sample once there are enough: the gain of RFC 6298's smoothed round-trip time
GAIN = 1 / 8
#: a call that takes this many times longer or shorter than expected is an outlier; a second one in
#: the same direction means that the speed has changed, and the estimate starts anew from it
OUTLIER = 3.0
#: the cost of a call and the cost of a task are told apart once the variance of the batch sizes is
#: this part of their mean square
SIZES_DIFFER = 0.02
#: ``peak``, the longest of recent calls, is multiplied by this with every further call
FADING = 0.997
#: most that ``peak`` can be, as a multiple of what was expected
LARGEST_PEAK = 64.0
#: shortest time that a call is ever expected to take, in seconds
SHORTEST_CALL = 1e-7

#: smaller batches are used instead of full ones if they reach this part of the full ones' rate
RATE_KEPT = 0.99
#: after this many calls of nearly the same size another size is tried
TRY_ANOTHER = 64


class Estimator:
    """Exponentially weighted fit of ``seconds = per_batch + per_task * batch`` to a device's calls.

    While every batch has the same size, the two costs cannot be told apart. The line then keeps its
    proportions and is scaled to the mean of the calls.
    """

    def __init__(self) -> None:
        #: whether there is an estimate, from a calibration or from calls
        self.known = False
        #: calls since the estimate was started
        self.samples = 0
        self.line = ServiceTime(0.0, 0.0)
        #: exponentially weighted mean of |measured / expected - 1|
        self.deviation = 0.0
        #: what the longest of recent calls took, as a multiple of what was expected
        self.peak = 0.0
        self._seconds = 0.0
        #: exponentially weighted mean of the batch sizes
        self.batch = 0.0
        self._batch_squared = 0.0
        self._product = 0.0
        self._outlier_side = 0
        #: whether it comes from the first call of all, which may be slow as everything is cold
        self._cold = False
        #: what each recent call took as a multiple of what was expected; ``None`` if nobody asks
        self.ratios: deque[float] | None = None
        #: whether the last call was given up, as a copy on another device was faster
        self.given_up = False
        #: whether recent calls differed in size, so that both figures of the line were measured
        self.told_apart = False

    def keep_ratios(self, calls: int) -> None:
        """From now on keep the ``ratios`` of the last calls, as many as ``calls`` says."""
        if self.ratios is None:
            self.ratios = deque(maxlen=calls)

    def start_from(self, line: ServiceTime) -> None:
        """Believe a calibration until the first real call."""
        self.known = True
        self._cold = False
        self.samples = 0
        self.line = line

    def expect(self, batch: float) -> float:
        """Seconds a call with ``batch`` tasks should take; ``nan`` while unknown."""
        if not self.known:
            return math.nan
        return max(SHORTEST_CALL, self.line.per_batch + self.line.per_task * batch)

    def batch_within(self, seconds: float) -> float:
        """How many tasks a call may have in order to take ``seconds``; ``nan`` while unknown."""
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
        self._cold = not self.known
        self.samples += 1
        self.batch += gain * (batch - self.batch)
        self._seconds += gain * (seconds - self._seconds)
        self._batch_squared += gain * (batch * batch - self._batch_squared)
        self._product += gain * (batch * seconds - self._product)
        self.line = self._fit()
        self.known = True

    def learn_given_up(self, batch: float, seconds: float) -> None:
        """Learn from a call that was given up after ``seconds``: it would have taken longer.

        The second in a row doubles the estimate, as a second time-out does for TCP (RFC 6298).
        """
        if self.given_up:
            self.start_from(ServiceTime(2 * self.line.per_batch, 2 * self.line.per_task))
        else:
            self.learn(batch, seconds)
        self.given_up = True

    def _tamed(self, batch: float, seconds: float, gain: float) -> tuple[float, float]:
        """Cut an outlier to ``OUTLIER`` times the estimate, or start anew from a second one.

        The first call of all is started anew from if the second one is that much shorter.
        """
        expected = self.expect(batch)
        side = (seconds > expected * OUTLIER) - (seconds * OUTLIER < expected)
        again = side != 0 and (side == self._outlier_side or (side < 0 and self._cold))
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
    """The least number of tasks a call that gives (nearly) the rate of full batches.

    Where a call costs nothing besides its tasks, large batches only make results wait. To tell what
    a call costs, calls of different sizes are needed; so now and then one of half the size is made.
    Variation of the service time is taken for a cost of calls, so batches stay large where it is
    high. The call should also take no longer than ``target`` seconds, if there is one.
    """

    def __init__(self, most: int, target: float | None) -> None:
        self._most = most
        self._target = target
        self._worth: float = most
        self._calls_alike = TRY_ANOTHER
        #: most tasks of the next call; 1 at first if there is a target, as the speed is unknown
        self.limit = most if target is None else 1

    def learn(self, estimator: Estimator) -> None:
        """Set the limit by what ``estimator`` has learnt since the last time."""
        cost, each = estimator.line
        if not estimator.samples and cost > 0:  # a calibration that gives both costs
            self._worth, self._calls_alike = _worth(cost, each, self._most), 0
        elif estimator.told_apart:  # less by half at most, as one estimate may be wrong
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
