"""What one opening of the driver holds: the way to the server, and a thread for the steps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from asyncinfer.errors import AsyncInferError, DeviceLost
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.open_inference.codec import Codec
from asyncinfer_drivers.open_inference.faults import Failure, Kind, while_running
from asyncinfer_drivers.open_inference.tensors import Message
from asyncinfer_drivers.open_inference.transport import Transport

__all__ = ("Limits", "Session")

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
P = ParamSpec("P")

#: seconds before an overloaded server is asked again for the first time; doubled each time
_FIRST_PAUSE = 0.005
#: what that doubling leads to at most, in seconds
_LONGEST_PAUSE = 0.25


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time limits in seconds. Past them: ``DeviceTimeout``, or as said."""

    #: for every answer that ``open`` and ``probe`` wait for
    connect_timeout: float = 5.0
    #: for a server that says it is overloaded, which is asked again and again; then ``DeviceError``
    queue_timeout: float = 2.0
    #: for one request
    run_timeout: float | None = 60.0


class Session:
    """From ``open`` to ``close``."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name = name
        self._limits = limits
        self._worker = Worker(name)
        self._worker.start()
        self._random = random.Random(42)
        self._closed = False
        self._transport: Transport | None = None
        self._codec: Codec | None = None

    @property
    def transport(self) -> Transport:
        """The way to the server; ``DeviceLost`` if there is none."""
        if self._transport is None or self._closed:
            raise DeviceLost(self._name, "not open")
        return self._transport

    @property
    def codec(self) -> Codec:
        """Between tasks and messages; ``DeviceLost`` until it is opened."""
        if self._codec is None:
            raise DeviceLost(self._name, "not open")
        return self._codec

    @property
    def opened(self) -> bool:
        """Whether the server's model was found to be the right one."""
        return self._codec is not None

    def ready(self, codec: Codec) -> None:
        """Let it be used, with this codec."""
        self._codec = codec

    async def connect(self, make: Callable[[], Transport]) -> Transport:
        """Make the transport in the thread, and let it connect."""
        transport = await self._worker.run(make)
        if self._closed:
            raise DeviceLost(self._name, "closed while it was opening")
        transport.connect()
        self._transport = transport
        return transport

    async def close(self) -> None:
        """End the requests under way, the connections and the thread. Idempotent."""
        self._closed = True
        try:
            if self._transport is not None:
                await self._transport.close()
        finally:
            await self._worker.stop()

    async def thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in the thread."""
        return await self._worker.run(function, *args, **kwargs)

    def error(
        self,
        error: Failure | asyncio.CancelledError,
        mapped: Callable[[str, Failure], AsyncInferError],
    ) -> BaseException:
        """What to raise for ``error`` of a request."""
        if isinstance(error, Failure):
            found: AsyncInferError = mapped(self._name, error)
        elif self._closed and not _is_cancelled():
            found = DeviceLost(self._name, "closed during a request")
        else:
            return error
        found.__cause__ = _light(error)
        return found

    async def reply(self, request: Message) -> Message:
        """The server's answer. An overloaded server is asked again, with growing pauses."""
        clock, pause, refused = asyncio.get_running_loop().time, _FIRST_PAUSE, None
        while True:
            try:
                return await self.transport.infer(request, self._limits.run_timeout)
            except (Failure, asyncio.CancelledError) as error:
                if not isinstance(error, Failure) or error.kind is not Kind.BUSY:
                    raise self.error(error, while_running)  # noqa: B904  # it has its cause
                refused = clock() if refused is None else refused
                if clock() + pause > refused + self._limits.queue_timeout:
                    error.text += f" (for {self._limits.queue_timeout:g} s)"
                    raise self.error(error, while_running)  # noqa: B904
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _light(error: E) -> E:
    """``error`` without frames: they lead to the channel, and with it lives gRPC's thread.

    The caller may keep many errors, and for long.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _is_cancelled() -> bool:
    """Whether this call is; gRPC raises the same when its channel closes."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
