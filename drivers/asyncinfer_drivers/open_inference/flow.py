"""How many requests are under way at once: as many as the server takes without refusing any."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import NamedTuple

__all__ = ("Flow", "Place")

#: what a refusal leaves of the most requests under way, at most
_DECREASE = 0.9
#: so many requests must be answered for each one that may be under way until there is one more;
#: twice as many after each refusal, until one more is answered, up to the second figure
_PATIENCE, _MOST_PATIENCE = 4.0, 256.0
#: there is to be one more only while fewer than this wait at the server
_QUEUED = 0.9
#: by how much the shortest time of an answer grows with each answer, lest it be too short for ever
_FORGETTING = 1.0005
#: weight of one answer in their usual time
_GAIN = 1 / 8


class Place(NamedTuple):
    """What there was when a request went."""

    #: requests under way, itself included
    beside: int
    #: how many had gone so far
    number: int


class _Waiter(NamedTuple):
    turn: asyncio.Future[Place]
    alone: bool


class Flow:
    """Lets requests go in the order in which they came, those first that were refused before.

    It begins without a limit. A server that refuses a request as it has too much to do shows how
    many it takes: those that are under way besides. That limit is lowered with each refusal, and
    raised slowly while it holds requests back and more under way would bring more: while answers
    take about as long as the shortest, so that none waits at the server for others.

    A request may also ask to be under way alone.
    """

    def __init__(self) -> None:
        self.limit = math.inf
        #: requests that are under way
        self.running = 0
        #: how many were let go so far
        self.started = 0
        #: when the server last answered one otherwise than by refusing it
        self.answered_at = -math.inf
        #: when the limit may be raised again
        self._steady_until = -math.inf
        #: what the last refusal left of the limit, and how slowly it is raised since
        self._left, self._patience = math.inf, _PATIENCE
        #: seconds of the shortest answer, and of a usual one
        self._shortest, self._usual = math.inf, 0.0
        #: whether the request that is under way is to be alone
        self._alone = False
        self._waiting: deque[_Waiter] = deque()

    async def enter(self, *, alone: bool = False, again: bool = False) -> Place:
        """Wait until a request may go; ``again`` says that it was under way before."""
        if not self._waiting and self._may_go(alone):
            return self._go(alone)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), alone)
        (self._waiting.appendleft if again else self._waiting.append)(waiter)
        self._let_go()  # a request that was refused need not wait for those that wait to be alone
        try:
            return await waiter.turn
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._let_go()
            elif not waiter.turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """A request is no longer under way."""
        self.running -= 1
        self._alone = False
        if self._waiting:
            self._let_go()

    def answered(self, now: float, seconds: float, place: Place) -> None:
        """The server has answered a request that is still under way, in so many seconds."""
        self.answered_at = now
        self._shortest = min(seconds, _FORGETTING * self._shortest)
        self._usual += (seconds - self._usual) * (_GAIN if self._usual else 1.0)
        if self.limit == math.inf:
            return
        if place.beside > self._left:
            self._patience = _PATIENCE
        queued = self.limit * (1 - self._shortest / self._usual) if self._usual else 0.0
        if self.running + 1 > self.limit and queued < _QUEUED and now >= self._steady_until:
            self.limit += 1 / (self._patience * self.limit)

    def crowded(self, place: Place) -> bool:
        """Whether another request was under way with this one."""
        return place.beside > 1 or self.started > place.number

    def refused(self, steady_until: float) -> None:
        """The server has too much to do for a request that is still under way.

        The limit is not raised before ``steady_until``.
        """
        self.limit = self._left = max(1.0, min(_DECREASE * self.limit, self.running - 1))
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._steady_until = max(self._steady_until, steady_until)

    def close(self) -> None:
        """Cancel those that wait."""
        while self._waiting:
            self._waiting.popleft().turn.cancel()

    def _may_go(self, alone: bool) -> bool:
        return not self._alone and self.running + 1 <= (1 if alone else self.limit)

    def _go(self, alone: bool) -> Place:
        self.running += 1
        self.started += 1
        self._alone = alone
        return Place(self.running, self.started)

    def _let_go(self) -> None:
        while self._waiting and self._may_go(self._waiting[0].alone):
            waiter = self._waiting.popleft()
            if not waiter.turn.done():
                waiter.turn.set_result(self._go(waiter.alone))
