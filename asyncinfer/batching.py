"""How many tasks one call of a device should have."""

from __future__ import annotations

import math

from asyncinfer.estimator import Estimator

__all__ = ("BatchSize",)

#: part of the rate of full batches that smaller ones must reach, to be used instead
PAYS = 0.99
#: calls of nearly one size until another size is tried
TRY_ANOTHER = 64


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
    """The least b with ``b / (cost + each * b) >= PAYS * most / (cost + each * most)``."""
    if each <= 0:
        return most
    least = PAYS * most * cost / (cost + (1 - PAYS) * each * most)
    return max(1, min(most, math.ceil(least - 1e-6)))
