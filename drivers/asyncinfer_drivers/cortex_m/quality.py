"""How good a line is: how often its bytes are damaged, and so how long its frames should be."""

from __future__ import annotations

import math

__all__ = ("LineQuality",)

#: bytes after which what was seen counts half
_HALF_LIFE = 65_536
#: bytes without damage that any line is credited with at first
_CREDIT = 4_096
#: bytes that a request and its answer have beside the samples
_OVERHEAD = 40


class LineQuality:
    """Learns from requests that were answered, and from those that were lost."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._lost = 0.0

    def add(self, size: int, *, lost: bool) -> None:
        """A request and its answer, of so many bytes, came through or did not."""
        kept = 0.5 ** (size / _HALF_LIFE)
        self._bytes = self._bytes * kept + size
        self._lost = self._lost * kept + lost

    def samples(self, most: int, sample_bytes: int) -> int:
        """How many samples in a request bring most samples through, of so many bytes each.

        Of ``n`` samples in ``o + n * s`` bytes, ``exp(-rate * (o + n * s))`` come through: this is
        the ``n`` that is largest for the bytes it costs.
        """
        damage = _OVERHEAD * self._lost / (self._bytes + _CREDIT)
        if damage * most * sample_bytes < 1e-9:
            return most
        best = _OVERHEAD / (2 * max(1, sample_bytes)) * (math.sqrt(1 + 4 / damage) - 1)
        return max(1, min(most, int(best)))
