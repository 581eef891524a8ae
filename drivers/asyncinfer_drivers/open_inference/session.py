"""What one opening of the driver holds: the way to the server, and a thread for the steps."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from asyncinfer.errors import AsyncInferError, ConfigError, DeviceError, DeviceLost, ProtocolError
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.open_inference.codec import Codec
from asyncinfer_drivers.open_inference.faults import Failure, Kind, one_line, while_running
from asyncinfer_drivers.open_inference.flow import Flow, Place
from asyncinfer_drivers.open_inference.sizes import Sizes
from asyncinfer_drivers.open_inference.specs import TensorSpec, alike, tensor_specs
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
#: most seconds that a server may ask to be left alone; then it counts as failed
_LONGEST_WAIT = 60.0
#: so many requests at which a model fails are remembered
_BLAMED = 64
#: seconds to wait for a server to tell its model's tensors again
_COMPARING_SECONDS = 1.0
#: seconds for which an answer of a server that it is ready, or is not, is believed
_READY_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time limits in seconds. Past them: ``DeviceTimeout``, or as said."""

    #: for every answer that ``open`` and ``probe`` wait for
    connect_timeout: float = 5.0
    #: for a server that says it is overloaded, which is asked again and again, until it answers
    #: any request; then ``DeviceError``. At least twice as long as it asks for (``Retry-After``)
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
        self._closing = asyncio.Event()
        self._flow = Flow()
        #: the latest requests at which the model failed while they were alone
        self._blamed: deque[int] = deque(maxlen=_BLAMED)
        #: what is known of how many tasks a request may have
        self.sizes = Sizes(1)
        #: whether the server said that it is ready, and when it was asked
        self._is_ready, self._ready_at = False, -math.inf
        self._asking = asyncio.Lock()
        #: the model's tensors as told when it was opened, and now; how often that was asked
        self._told = self._now = tuple[TensorSpec, ...]()
        self._compared = 0
        self._comparing = asyncio.Lock()
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

    def told(self, metadata: Mapping[str, Any]) -> None:
        """The server has told this of its model."""
        self._told = self._now = _tensors(metadata)

    async def check_model(self) -> None:
        """Raise ``DeviceError`` if the server has another model now, or none, than when opened.

        To be called when it refuses a request. Several that were refused meanwhile share an answer.
        """
        known = self._compared
        async with self._comparing:
            if self._compared == known:
                self._compared += 1
                try:
                    self._now = await self._tensors()
                except asyncio.CancelledError as error:
                    raise self.error(error, while_running)  # noqa: B904
        if not alike(self._now, self._told):
            now, told = (", ".join(map(str, specs)) or "none" for specs in (self._now, self._told))
            text = f"the server's model is another one now, with {now}, not {told}"
            raise ProtocolError(self._name, one_line(text))

    async def _tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors that the server tells of its model now; if it tells none, those of before."""
        limit = min(self._limits.connect_timeout, _COMPARING_SECONDS)
        try:
            return _tensors(await self.transport.metadata(limit))
        except Failure as failure:
            if failure.kind is Kind.UNKNOWN:
                return ()
        except (ValueError, ConfigError):
            pass
        return self._now

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
        self._closing.set()
        self._flow.close()
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
        """The server's answer.

        An overloaded server is asked again, with growing pauses, and less at once. A request at
        which the model failed while others were under way is made once more by itself: the server
        may have put them into one batch, which failed as a whole.
        """
        patience, by_itself, again = _Patience(self._limits.queue_timeout), False, False
        while True:
            try:
                place = await self._flow.enter(alone=by_itself, again=again)
                try:
                    answer = await self._asked(request, patience, place)
                finally:
                    self._flow.leave()
                if isinstance(answer, Message):
                    return answer
                await self._pause(answer.wait)
            except (Failure, asyncio.CancelledError) as error:
                raise self.error(error, while_running)  # noqa: B904  # it has its cause
            by_itself, again = answer.kind is Kind.FAILED, True

    async def refuses(self, request: Message) -> bool:
        """Whether the server, or its model, does not take a request."""
        try:
            await self.reply(request)
        except DeviceError:
            raise
        except AsyncInferError:
            return True
        return False

    async def _asked(
        self, request: Message, patience: _Patience, place: Place
    ) -> Message | Failure:
        """The answer to a request that is under way, or why it is to be made again later.

        It stays under way while the server is overloaded and nothing else is.
        """
        flow, clock, limit = self._flow, asyncio.get_running_loop().time, self._limits.run_timeout
        while True:
            began = clock()
            try:
                answer = await self.transport.infer(request, limit)
            except Failure as failure:
                if not await self._is_busy(failure):
                    flow.answered_at = clock()
                    crowded = flow.crowded(place)
                    if failure.kind is Kind.FAILED and not self._is_to_blame(request, crowded):
                        return failure
                    raise
                pause = patience.next(failure, flow.answered_at, clock())
                flow.refused(clock() + failure.wait)
                if flow.running > 1:
                    return failure
                await self._pause(max(failure.wait, pause * self._random.uniform(0.5, 1.0)))
            else:
                flow.answered(clock(), clock() - began, place)
                return answer

    def _is_to_blame(self, request: Message, crowded: bool) -> bool:
        """Whether the model failed at this request itself: it does so when nothing else is there.

        The dispatcher makes it again a few times; it need not be alone for each of them.
        """
        if crowded:
            return hash(request.body) in self._blamed
        self._blamed.append(hash(request.body))
        return True

    async def _is_busy(self, failure: Failure) -> bool:
        """Whether the server has too much to do: says so, or is unavailable but ready."""
        if failure.kind is not Kind.UNAVAILABLE:
            return failure.kind is Kind.BUSY
        clock = asyncio.get_running_loop().time
        async with self._asking:
            if clock() > self._ready_at + _READY_SECONDS:
                try:
                    self._is_ready = await self.transport.ready(self._limits.connect_timeout)
                except Failure:
                    self._is_ready = False
                self._ready_at = clock()
            return self._is_ready

    async def _pause(self, seconds: float) -> None:
        """Wait so long; ``DeviceLost`` if it is closed meanwhile."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()
                raise DeviceLost(self._name, "closed while the server was overloaded")


class _Patience:
    """With one request that a server refuses: growing pauses, and an end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pause = _FIRST_PAUSE
        self._refused_at: float | None = None

    def next(self, failure: Failure, answered_at: float, now: float) -> float:
        """Seconds to wait; raises ``failure`` if the server has answered nothing for too long."""
        if self._refused_at is None:
            self._refused_at = now
        since = max(self._refused_at, answered_at)
        self._seconds = max(self._seconds, 2 * failure.wait)
        if failure.wait > _LONGEST_WAIT:
            failure.text += f" (it asks for {failure.wait:g} s)"
            raise failure
        if now + max(self._pause, failure.wait) > since + self._seconds:
            failure.text += f" (for {self._seconds:g} s)"
            raise failure
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause


def _tensors(metadata: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """The model's inputs, then its outputs, in whatever order they are told."""
    sides = [tensor_specs(metadata.get(kind), kind) for kind in ("inputs", "outputs")]
    return tuple(spec for side in sides for spec in sorted(side, key=lambda spec: spec.name))


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
