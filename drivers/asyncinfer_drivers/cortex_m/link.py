"""The link to a board: requests in flight within its credit, answered once each, or failed."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncinfer.errors import DeviceError, DeviceLost, DeviceTimeout, ProtocolError
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import CodecError, Decoder
from asyncinfer_drivers.cortex_m.constants import (
    LAST_SEQUENCE,
    OVERHEAD_BYTES,
    RESULT_HEADER_BYTES,
    ErrorCode,
)
from asyncinfer_drivers.cortex_m.log import show
from asyncinfer_drivers.cortex_m.specs import BoardSpec
from asyncinfer_drivers.cortex_m.timing import Estimator, Timing
from asyncinfer_drivers.cortex_m.transport import ByteTransport, Connect

__all__ = ("Link", "LinkStats")

Make: TypeAlias = Callable[[int], frames.Frame]

#: longest pause after BUSY, in seconds
_LONGEST_BUSY = 0.5


@dataclass
class LinkStats:
    """What one link has counted since it was opened."""

    #: frames sent, HELLO and repetitions included
    sent: int = 0
    #: requests sent again
    resent: int = 0
    #: requests not answered in time
    timeouts: int = 0
    #: frames received that were whole
    received: int = 0
    #: answers nobody waited for: doubled, or to a request that was given up
    late: int = 0
    #: frames received with a wrong checksum, version, type or payload
    bad_frames: int = 0
    #: times the device was BUSY
    busy: int = 0
    #: boots of the device that were noticed
    boots: int = 0


@dataclass(eq=False)
class _Request:
    """One request, from ``start`` to its answer."""

    make: Make
    #: how many samples it makes the device work on
    samples: int
    future: asyncio.Future[Any]
    wire: bytes = b""
    kind: type[frames.Frame] = frames.Frame
    tries: int = 0
    #: places of its first and its latest sending among everything sent
    first: int = 0
    latest: int = 0
    sent_at: float = 0.0
    deadline: float = 0.0
    #: the pause after the next BUSY, in seconds; the deadline ends such a pause if ``waiting``
    pause: float = 0.0
    waiting: bool = False


class Link:
    """One connection to one board; opened once, and of no use after it failed or was closed.

    Requests wait for the board's credit in the order in which they were started. Each is sent
    again when its answer does not come in time, or when the answer to a later one comes first. A
    board takes requests in order, so that one is lost. After a boot everything unanswered is sent
    again. The future of a request gives the answering frame (an ``Error`` too, unless it is BUSY),
    or a ``DeviceError``; cancel it to give the request up.

    :param byte_seconds: seconds one byte takes on the line, 0 where that does not matter.
    """

    def __init__(
        self, name: str, connect: Connect, timing: Timing, *, byte_seconds: float = 0.0
    ) -> None:
        self.name = name
        self.stats = LinkStats()
        self.board: BoardSpec | None = None
        self._connect = connect
        self._timing = timing
        self._byte_seconds = byte_seconds
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._estimator = Estimator(timing)
        self._transport: ByteTransport | None = None
        self._lost = asyncio.Event()
        self._error: DeviceError | None = None
        self._sequence = random.randrange(1, LAST_SEQUENCE)
        self._greeting: _Greeting | None = None
        self._queue: deque[_Request] = deque()
        self._pending: dict[int, _Request] = {}
        self._sendings = 0
        self._silent = 0
        self._progress_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ---- opening and closing

    @property
    def up(self) -> bool:
        """Whether requests can be started."""
        return self.board is not None and self._error is None

    async def open(self) -> BoardSpec:
        """Connect and say HELLO until the board answers; raises ``DeviceError``."""
        try:
            async with asyncio.timeout(self._timing.open):
                self._transport = await self._connect(self)
                self.board = await self._greet()
        except TimeoutError as error:
            text = f"no answer to HELLO within {self._timing.open:g} s"
            raise DeviceTimeout(self.name, text) from error
        except OSError as error:
            raise DeviceLost(self.name, f"cannot connect: {error}") from error
        output = sum(tensor.size for tensor in self.board.outputs) * self.board.max_samples
        largest = OVERHEAD_BYTES + RESULT_HEADER_BYTES + output
        self._decoder.limit = max(self._decoder.limit, largest)
        return self.board

    async def _greet(self) -> BoardSpec:
        greeting = self._greeting = _Greeting(self._next_sequence(), self._loop.create_future())
        hello = frames.encode(frames.Hello(greeting.sequence))
        try:
            while not greeting.reply.done():
                if self._error is not None:
                    raise self._copy(self._error)
                greeting.again.clear()
                self._write(hello)
                with suppress(TimeoutError):
                    await asyncio.wait_for(greeting.again.wait(), self._timing.hello)
            return greeting.reply.result()
        finally:
            self._greeting = None

    async def close(self) -> None:
        """Fail what is unanswered and free the port. Idempotent."""
        self.fail(DeviceLost(self.name, "closed"))
        if self._transport is not None:
            self._transport.abort()  # in case it was connected after it had failed
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), self._timing.close)

    def fail(self, error: DeviceError) -> None:
        """End it: every request fails with ``error``, the connection is dropped."""
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        requests = [*self._pending.values(), *self._queue]
        self._pending.clear()
        self._queue.clear()
        for request in requests:
            _settle(request.future, self._copy(error))
        if self._greeting is not None:
            self._greeting.again.set()
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the transport: the port is free."""
        self._lost.set()
        self.fail(DeviceLost(self.name, f"connection lost{f': {error}' if error else ''}"))

    @staticmethod
    def _copy(error: DeviceError) -> DeviceError:
        return type(error)(error.device, error.message)

    # ---- requests

    def start(self, make: Make, samples: int = 0) -> asyncio.Future[Any]:
        """Send ``make(sequence)`` as soon as there is credit; raises the error it failed with."""
        if self._error is not None:
            raise self._copy(self._error)
        request = _Request(make, samples, self._loop.create_future(), pause=self._timing.busy)
        self._queue.append(request)
        self._pump()
        return request.future

    def _pump(self) -> None:
        credit = max(1, self.board.frames_in_flight if self.board else 1)
        while self._queue and len(self._pending) < credit:
            request = self._queue.popleft()
            if request.future.cancelled():
                continue
            if not self._pending:
                self._progress_at = self._loop.time()
            sequence = self._next_sequence()
            frame = request.make(sequence)
            request.wire, request.kind = frames.encode(frame), type(frame)
            self._pending[sequence] = request
            self._send(request)
        self._arm()

    def _next_sequence(self) -> int:
        while True:
            self._sequence = self._sequence % LAST_SEQUENCE + 1
            if self._sequence not in self._pending:
                return self._sequence

    def _send(self, request: _Request) -> None:
        self._sendings += 1
        request.latest = self._sendings
        request.first = request.first or self._sendings
        self.stats.resent += request.tries > 0
        request.tries += 1
        request.waiting = False
        request.sent_at = self._loop.time()
        request.deadline = self._deadline()
        self._write(request.wire)

    def _write(self, wire: bytes) -> None:
        self.stats.sent += 1
        if self._transport is not None:
            self._transport.write(wire)

    # ---- time

    def _deadline(self) -> float:
        """When an answer is overdue: the board works off everything pending in order."""
        samples = sum(request.samples for request in self._pending.values())
        size = sum(len(request.wire) for request in self._pending.values())
        wait = self._estimator.wait(samples) + size * self._byte_seconds
        return self._loop.time() + wait

    def _arm(self) -> None:
        """Have ``_look`` called at the first deadline; a timer that comes too early may stay."""
        if not self._pending:
            return
        first = min(request.deadline for request in self._pending.values())
        if self._timer is not None:
            if self._timer.when() <= first:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(first, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = [item for item in self._pending.items() if item[1].deadline <= now]
        overdue = [item for item in due if not item[1].waiting]
        for sequence, request in due:
            if request.waiting:
                self._repeat(sequence, request)
        if overdue:
            self._timed_out(*min(overdue, key=lambda item: item[1].latest))
            for _, request in overdue:
                request.deadline = max(request.deadline, self._deadline())
        if self._error is None:
            self._pump()

    def _timed_out(self, sequence: int, request: _Request) -> None:
        self._silent += 1
        self.stats.timeouts += 1
        self._estimator.timed_out()
        if self._silent >= self._timing.timeouts:
            self.fail(DeviceLost(self.name, f"silent: {self._silent} timeouts in a row"))
        else:
            self._repeat(sequence, request)

    def _repeat(self, sequence: int, request: _Request) -> None:
        """Send it again, unless nobody wants it any more or it was sent too often."""
        if request.future.cancelled():
            del self._pending[sequence]
        elif request.tries >= self._timing.attempts:
            del self._pending[sequence]
            text = f"a request was sent {request.tries} times without a good answer"
            _settle(request.future, DeviceTimeout(self.name, text))
        else:
            self._send(request)

    # ---- answers

    def data_received(self, data: bytes) -> None:
        """Called by the transport: some bytes."""
        for body in self._decoder.feed(data):
            if self._error is not None:
                return
            try:
                frame = frames.parse(body)
            except CodecError:
                self.stats.bad_frames += 1
            else:
                self.stats.received += 1
                self._silent = 0
                self._received(frame)

    def _received(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.HelloReply):
            self._hello_reply(frame)
        elif isinstance(frame, frames.Log) or frame.sequence == 0:
            show(self.name, frame)
        elif frame.sequence not in self._pending:
            self.stats.late += 1
        elif isinstance(frame, frames.Error) and frame.code == ErrorCode.BUSY:
            self._busy(self._pending[frame.sequence])
        else:
            self._answered(self._pending.pop(frame.sequence), frame)
            self._pump()

    def _hello_reply(self, frame: frames.HelloReply) -> None:
        greeting = self._greeting
        if greeting is not None:
            if frame.sequence == greeting.sequence and not greeting.reply.done():
                greeting.reply.set_result(frame.board)
            greeting.again.set()  # after a boot, ask at once
        elif frame.sequence == 0 and self.board is not None:
            if frame.board.boot_counter != self.board.boot_counter:
                self._booted(self.board, frame)
        else:
            self.stats.late += 1

    def _booted(self, before: BoardSpec, frame: frames.HelloReply) -> None:
        """Everything the board was told is gone: tell it again."""
        self.stats.boots += 1
        if not frame.board.same_program(before):
            self.fail(ProtocolError(self.name, "runs another program since its reset"))
            return
        self.board = frame.board
        self._estimator.answered()
        for sequence, request in sorted(self._pending.items(), key=lambda item: item[1].latest):
            if request.kind is frames.Reset:
                del self._pending[sequence]
                _settle(request.future, frame)
            else:
                self._repeat(sequence, request)
        self._pump()

    def _busy(self, request: _Request) -> None:
        self.stats.busy += 1
        request.waiting = True
        request.deadline = self._loop.time() + request.pause
        request.pause = min(2 * request.pause, _LONGEST_BUSY)
        self._arm()

    def _answered(self, request: _Request, frame: frames.Frame) -> None:
        now = self._loop.time()
        wrong = self._wrong(request, frame)
        if wrong:
            _settle(request.future, ProtocolError(self.name, wrong))
        elif request.tries == 1:  # else nobody knows which sending this answers
            self._estimator.answered()
            if request.kind is frames.Infer:
                started = max(request.sent_at, self._progress_at)
                self._estimator.add(now - started, request.samples)
        self._progress_at = now
        for sequence, other in list(self._pending.items()):
            if not other.waiting:
                other.deadline = self._deadline()
                if request.kind is other.kind and other.latest < request.first:
                    self._repeat(sequence, other)  # overtaken: it was lost
        _settle(request.future, frame)

    def _wrong(self, request: _Request, frame: frames.Frame) -> str:
        """Why this frame is no answer to the request; empty if it is one."""
        if isinstance(frame, frames.Error):
            return ""
        if not isinstance(frame, _ANSWERS[request.kind]):
            return f"answered {request.kind.__name__} with {type(frame).__name__}"
        if isinstance(frame, frames.Result) and self.board is not None:
            size = request.samples * self.board.outputs[0].size
            if frame.count != request.samples or len(frame.data) != size:
                return f"answered {request.samples} samples with {frame.count}, wrong in length"
        return ""


_ANSWERS: dict[type[frames.Frame], type[frames.Frame]] = {
    frames.Infer: frames.Result,
    frames.Ping: frames.Pong,
    frames.Stats: frames.StatsReply,
    frames.Reset: frames.HelloReply,
}


class _Greeting:
    """The HELLO that is being repeated."""

    def __init__(self, sequence: int, reply: asyncio.Future[BoardSpec]) -> None:
        self.sequence = sequence
        self.reply = reply
        #: set when there is reason to look at ``reply`` or to ask again
        self.again = asyncio.Event()


def _settle(future: asyncio.Future[Any], outcome: frames.Frame | DeviceError) -> None:
    """Give a future its outcome, unless it has one or was cancelled."""
    if future.done():
        return
    if isinstance(outcome, DeviceError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
