"""Calls of a device that should end soon, and those among them that do not."""

from __future__ import annotations

import asyncio
from typing import Any

from asyncinfer._core.devices.apart import quiet, set_apart

__all__ = ("Leftovers",)


class Leftovers:
    """The cancelled calls of one device that have not ended yet.

    Each belongs to one opening of the device, its generation. A call that has not ended when the
    wait for it is over is wedged: it is left behind, and nobody waits for it any more.
    """

    def __init__(self) -> None:
        self._calls: dict[asyncio.Task[Any], int] = {}
        self._wedged: set[asyncio.Task[Any]] = set()

    def expect_end(self, call: asyncio.Task[Any], generation: int) -> None:
        """Expect ``call`` to end: it was cancelled, or it closes the driver."""
        if not call.done():
            self._calls[call] = generation
            call.add_done_callback(self._has_ended)

    def _has_ended(self, call: asyncio.Task[Any]) -> None:
        self._calls.pop(call, None)
        self._wedged.discard(call)
        if not call.cancelled():
            call.exception()  # so that asyncio does not report it: nobody waits for the call

    async def wait_for_ends(self, seconds: float) -> None:
        """Wait until all calls but the wedged ones have ended, for ``seconds`` at most."""
        calls = [call for call in self._calls if call not in self._wedged]
        if calls and seconds > 0:
            await asyncio.wait(calls, timeout=seconds)

    def mark_wedged(self) -> int:
        """Wait no more: the calls that are left are wedged. Returns how many were not before."""
        before = len(self._wedged)
        self._wedged |= self._calls.keys()
        for call in self._wedged:
            set_apart(call)
            quiet(call)
        return len(self._wedged) - before

    @property
    def wedged(self) -> int:
        """How many calls were left behind and still go on."""
        return len(self._wedged)

    @property
    def generations(self) -> int:
        """How many openings of the device the calls belong to."""
        return len(set(self._calls.values()))

    async def fewer_than(self, generations: int) -> None:
        """Wait until the calls belong to fewer openings of the device than ``generations``."""
        while self.generations >= generations:
            await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
