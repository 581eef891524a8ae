"""One request as uvicorn has it: its body without copies, and whether the client is still there.

ASGI copies each piece of a body, has the application woken for each, and tells it that the client
has gone only while it waits for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asyncinfer.serve.errors import Cancelled
from asyncinfer.serve.gate import Held

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ("Exchange",)

_KEY = "asyncinfer.exchange"


class Exchange:
    """Made by the protocol once the headers are there; ``cycle`` is uvicorn's state of it."""

    def __init__(self, scope: Any, cycle: Any) -> None:
        scope[_KEY] = self
        self._cycle = cycle
        self._receive: Receive = cycle.receive
        self._on_gone: Callable[[], object] | None = None
        #: bytes of the body that may be gathered before the application is woken
        self.room = 0
        #: whether the client went away before it had its answer
        self.gone = False

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """That of a request."""
        found: Exchange = scope[_KEY]
        return found

    def whole(self) -> bytearray | None:
        """The body if all of it is there already."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        return self._taken()

    async def body(self, held: Held) -> bytearray:
        """The whole body. ``held`` has room for as much as was declared, and gets what is more."""
        cycle, body = self._cycle, bytearray()
        if held.count and not cycle.waiting_for_100_continue:
            return await self._gathered(held.count)
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client went away")
            held.add(max(0, len(body) + len(message["body"]) - held.count))
            body += message["body"]
            if not message["more_body"]:
                return body

    async def _gathered(self, room: int) -> bytearray:
        """The body, of at most so many bytes."""
        cycle = self._cycle
        self.room = room
        cycle.flow.resume_reading()
        while cycle.more_body and not cycle.disconnected:
            cycle.message_event.clear()
            await cycle.message_event.wait()
        if cycle.disconnected:
            raise Cancelled("the client went away")
        return self._taken()

    def _taken(self) -> bytearray:
        cycle = self._cycle
        body: bytearray = cycle.body
        cycle.body = bytearray()
        cycle.message_event.clear()
        cycle.flow.resume_reading()  # or it would not be noticed that the client goes
        return body

    def watch(self, on_gone: Callable[[], object] | None) -> None:
        """Call this once the client has gone, at once if it has; ``None`` for nothing any more."""
        self._on_gone = on_gone
        if self.gone and on_gone is not None:
            on_gone()

    def lost(self) -> None:
        """The connection is lost."""
        if not self._cycle.response_complete:
            self.gone = True
            if self._on_gone is not None:
                self._on_gone()
