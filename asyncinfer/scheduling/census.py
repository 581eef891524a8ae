"""What many devices do together, known without looking at each of them."""

from __future__ import annotations

import math

__all__ = ("Census", "Figures")

#: classes of latency for each factor of two
FINENESS = 16
#: the latency at which the first class begins, in seconds; shorter ones belong to it too
SHORTEST_LATENCY = 1e-7
#: classes that one partial sum covers
BLOCK = 32
#: number of classes: the last one begins at about 80 days
CLASSES = 46 * FINENESS

#: latency, interval and deviation of a device; the deviation is ``nan`` before its first call
Figures = tuple[float, float, float]


class Census:
    """Devices counted by their latency, in classes.

    Counting a device and asking for a figure take the same time for any number of devices. Devices
    whose latencies differ by less than 4 % fall into one class and are taken as alike.
    """

    def __init__(self) -> None:
        self._devices = _Sums()
        self._rates = _Sums()
        self._in_flight = _Sums()
        self._deviations = 0.0
        self._noisy = 0
        self._seen = 0

    def count(self, figures: Figures, sign: int = 1) -> None:
        """Count a device of known speed; with ``sign=-1``, count it no more."""
        latency, interval, deviation = figures
        at = _class_of(latency)
        self._devices.add(at, sign)
        self._rates.add(at, sign / interval)
        self._in_flight.add(at, sign * latency / interval)
        if not math.isnan(deviation):
            self._seen += sign
            self._noisy += sign * (deviation > 0)
            self._deviations += sign * deviation

    @property
    def rate(self) -> float:
        """Tasks a second that all devices finish together."""
        return self._rates.below(CLASSES)

    @property
    def seen(self) -> bool:
        """Whether any device has finished a call, so that a deviation is known."""
        return self._seen > 0

    @property
    def deviation(self) -> float:
        """Mean deviation of the devices whose calls vary; 0 if there are none."""
        return max(0.0, self._deviations / self._noisy) if self._noisy else 0.0

    def finished_before(self, latency: float, within: float) -> float:
        """Tasks that devices faster than ``latency`` finish, besides those they are running.

        It is the number to expect ``within`` so many seconds if each device is at a random point of
        its present call: ``sum of (within - L_k) / T_k``.
        """
        at = _class_of(latency)
        return within * self._rates.below(at) - self._in_flight.below(at)

    def between(self, shortest: float, longest: float) -> int:
        """How many devices have a latency from ``shortest`` to ``longest``."""
        below = self._devices.below
        return round(below(_class_of(longest) + 1) - below(_class_of(shortest)))


class _Sums:
    """A number for each class, and sums over all classes below one of them."""

    def __init__(self) -> None:
        self._classes = [0.0] * (CLASSES + 1)
        self._blocks = [0.0] * (CLASSES // BLOCK + 1)

    def add(self, at: int, value: float) -> None:
        self._classes[at] += value
        self._blocks[at // BLOCK] += value

    def below(self, at: int) -> float:
        block = at // BLOCK
        return sum(self._blocks[:block]) + sum(self._classes[block * BLOCK : at])


def _class_of(latency: float) -> int:
    steps = FINENESS * math.log2(max(latency, SHORTEST_LATENCY) / SHORTEST_LATENCY)
    return min(CLASSES - 1, int(steps))
