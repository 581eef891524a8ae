"""What a thread does between its calls: work that nobody waits for, in steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

__all__ = ("Between", "Chores")

#: seconds without a call after which a thread is taken to be idle, once it has had calls
_IDLE = 0.02
#: the same before: the first result must not wait for a step
_IDLE_AT_FIRST = 0.2


class Chores(Protocol):
    """Work in steps, each short."""

    @property
    def waiting(self) -> bool:
        """Whether there is anything to do, now or soon."""
        ...

    @property
    def worked(self) -> float:
        """Seconds that calls have taken so far."""
        ...

    def step(self) -> bool:
        """Do some of it, if there is something to do now; whether there was."""
        ...


class Between:
    """Takes steps while a thread is idle, and for half of its time at most while it has calls."""

    def __init__(self, chores: Chores, clock: Callable[[], float] = time.perf_counter) -> None:
        self._chores = chores
        self._clock = clock
        #: seconds that steps took while there were calls
        self._spent = 0.0

    @property
    def needed(self) -> bool:
        """Whether ``fill`` has anything to do."""
        return self._chores.waiting

    def fill(self, came: Callable[[float], bool], ended: Callable[[], bool]) -> None:
        """Take steps until a call is due: ``came`` waits for one, for so many seconds."""
        idle = False
        while self._chores.waiting and not ended():
            worked = self._chores.worked
            due = not idle and worked > 0 and self._spent <= worked
            if not due:
                if came(0.0 if idle else _IDLE if worked else _IDLE_AT_FIRST):
                    return
                idle = worked > 0  # then one step follows the other until a call comes
            began = self._clock()
            done = False if ended() else self._chores.step()
            if due:
                self._spent += self._clock() - began
            if not done and came(_IDLE):
                return
