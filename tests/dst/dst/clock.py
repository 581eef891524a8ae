"""A virtual clock that can leap, and that lets somebody look before it moves."""

from __future__ import annotations

import selectors
from collections.abc import Callable

from asyncinfer.testing import VirtualLoop

__all__ = ("WatchedLoop",)

#: turns of the event loop after which a run is taken to go in circles
TURNS = 80_000


class WatchedLoop(VirtualLoop):
    """Calls ``before_moving`` whenever nothing is left to do at the present time."""

    def __init__(self) -> None:
        super().__init__()
        self.before_moving: Callable[[], object] = lambda: None
        self.turns = 0
        self._select = self._jumping.select
        self._jumping.select = self._watched  # type: ignore[method-assign]

    def _watched(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if self.turns > TURNS:
            raise RuntimeError(f"more than {TURNS} turns of the event loop: it goes in circles")
        if timeout is None or timeout > 0:
            self.before_moving()
        return self._select(timeout)

    def leap(self, seconds: float) -> None:
        """Move the clock past whatever was to happen meanwhile."""
        self._jumping.now += seconds

    @property
    def timers(self) -> list[str]:
        """Those that will still ring."""
        return [repr(timer) for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
