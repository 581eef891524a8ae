"""Calls of a device that are to end, and those among them that do not."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ("Leftovers",)


class Leftovers:
    """Cancelled calls of one device that have not ended yet; each belongs to one opening of it.

    A call that outlives the wait for it is wedged: it is left behind, and nobody waits for it.
    """

    def __init__(self) -> None:
        self._calls: dict[asyncio.Task[Any], int] = {}
        self._wedged: set[asyncio.Task[Any]] = set()

    def expect_end(self, call: asyncio.Task[Any], generation: int) -> None:
        """A call is to end: it was cancelled, or is the driver's ``close``."""
        if not call.done():
            self._calls[call] = generation
            call.add_done_callback(self._has_ended)

    def _has_ended(self, call: asyncio.Task[Any]) -> None:
        self._calls.pop(call, None)
        self._wedged.discard(call)
        if not call.cancelled():
            call.exception()  # it has been seen: nobody is left to be told of it

    async def wait_for_ends(self, seconds: float) -> None:
        """Wait for those not wedged to end, so long at most."""
        calls = [call for call in self._calls if call not in self._wedged]
        if calls and seconds > 0:
            await asyncio.wait(calls, timeout=seconds)

    def mark_wedged(self) -> int:
        """Wait no more for those that are left; return how many were not known to be wedged."""
        before = len(self._wedged)
        self._wedged |= self._calls.keys()
        return len(self._wedged) - before

    @property
    def wedged(self) -> int:
        """Calls that were left behind and still go on."""
        return len(self._wedged)

    @property
    def generations(self) -> int:
        """How many openings of the device they belong to."""
        return len(set(self._calls.values()))

    async def fewer_than(self, generations: int) -> None:
        """Wait until they belong to fewer openings of the device."""
        while self.generations >= generations:
            await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
