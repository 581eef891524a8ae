"""Which of two ways is faster, told by calls in turns: a host's speed changes all the time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from asyncinfer_drivers._torch.course import Steps

__all__ = ("LEAST_PAIRS", "compared")

#: pairs of calls that count, at least (where they are not clear before time is up) and at most
_FEWEST, _MOST = 3, 40
#: how probable it may be that pairs as clear as these come about by chance
_BY_CHANCE = 1 / 32
#: pairs that may be clear, if all of them say the same
LEAST_PAIRS = 5
#: so many times more or less than what is asked for is clear after the fewest pairs
_FAR = 1.25


def compared(
    one: Callable[[], float],
    other: Callable[[], float],
    *,
    least: float,
    enough: Callable[[], bool],
    wanted: Callable[[], bool] = lambda: True,
) -> Steps[float]:
    """How many times as fast ``one`` is as ``other``: the median over calls of both in turns.

    Both make a call and give its seconds. It ends as soon as it is clear whether the one is more
    than ``least`` times as fast, or when there was ``enough`` of it. Each pair is a step.
    """
    ratios = list[float]()
    for pair in range(_MOST + 1):
        ratio = _in_turn(one, other) if pair % 2 else 1 / _in_turn(other, one)
        if pair:  # before, caches are cold
            ratios.append(ratio)
        yield None
        if _clear(ratios, least) or (len(ratios) >= _FEWEST and enough()) or not wanted():
            break
    return statistics.median(ratios or [1.0])


def _in_turn(first: Callable[[], float], second: Callable[[], float]) -> float:
    """How many times as fast the first is."""
    took = first()
    return second() / took


def _clear(ratios: Sequence[float], least: float) -> bool:
    """Whether ratios are far from ``least``, or on one side of it more often than by chance.

    The latter is a sign test.
    """
    if len(ratios) < _FEWEST:
        return False
    if min(ratios) > _FAR * least or max(ratios) < least / _FAR:
        return True
    count, above = len(ratios), sum(ratio > least for ratio in ratios)
    fewer = min(above, count - above)
    ways = sum(math.comb(count, several) for several in range(fewer + 1))
    return ways <= _BY_CHANCE * (1 << count)
