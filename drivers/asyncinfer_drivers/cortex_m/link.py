"""The link to one board: opened by HELLO, failed at once when the board is gone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from asyncinfer.errors import DeviceError, DeviceLost, DeviceTimeout, ProtocolError
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import CodecError, Decoder
from asyncinfer_drivers.cortex_m.constants import OVERHEAD_BYTES, RESULT_HEADER_BYTES
from asyncinfer_drivers.cortex_m.greeting import Greeting
from asyncinfer_drivers.cortex_m.log import BoardLog
from asyncinfer_drivers.cortex_m.specs import BoardSpec
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import ByteTransport, Connect
from asyncinfer_drivers.cortex_m.window import Learned, LinkStats, Make, Window

__all__ = ("Link", "LinkStats")

#: bytes of the largest frame that a board may announce
MAX_BODY = 16 * 1024 * 1024


class Link:
    """One connection to one board; opened once, and of no use after it failed or was closed.

    Requests wait for the board's credit in the order in which they were started. Each is sent
    again when the answer to a later one comes first, or to a HELLO that is said when no answer
    comes in time. A board takes requests in order, so that one is lost. After a boot everything
    unanswered is sent again. The future of a request gives the answering frame (an ``Error`` too,
    unless it is BUSY), ``TooLong``, or a ``DeviceError``; cancel it to give the request up.

    :param byte_seconds: seconds one byte takes on the line, 0 where that does not matter.
    :param learned: what an earlier link to the same board has learned.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        timing: Timing,
        *,
        byte_seconds: float = 0.0,
        learned: Learned | None = None,
    ) -> None:
        self.name = name
        self._connect = connect
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._log = BoardLog(name, self._loop.time)
        self._byte_seconds = byte_seconds
        self._window = Window(name, timing, byte_seconds, self._write, self._silent, learned)
        self._transport: ByteTransport | None = None
        self._lost = asyncio.Event()
        self._error: DeviceError | None = None
        self._greeting: Greeting | None = None

    @property
    def board(self) -> BoardSpec | None:
        """What the board last said about itself; ``None`` before it has answered."""
        return self._window.board

    @property
    def stats(self) -> LinkStats:
        """What was counted since the link was made."""
        return self._window.stats

    @property
    def samples_per_frame(self) -> int:
        """Samples that a request should have: as many as the board takes, fewer on a bad line."""
        return self._window.samples_per_frame

    @property
    def measured(self) -> bool:
        """Whether it is known how long the board takes."""
        return self._window.measured

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
                board = self._window.board = await self._greet()
        except TimeoutError as error:
            text = f"no answer to HELLO within {self._timing.open:g} s"
            if self._greeting is not None:
                text += f": {self._greeting.diagnosis()}"
            raise DeviceTimeout(self.name, text) from error
        except OSError as error:
            raise DeviceLost(self.name, f"cannot connect: {error}") from error
        output = sum(tensor.size for tensor in board.outputs) * board.max_samples
        largest = OVERHEAD_BYTES + RESULT_HEADER_BYTES + output
        if largest > MAX_BODY:
            text = f"its answers may be of {largest:,} bytes, more than {MAX_BODY:,}"
            raise ProtocolError(self.name, text)
        self._decoder.limit = max(self._decoder.limit, largest)
        return board

    async def _greet(self) -> BoardSpec:
        greeting = self._greeting = Greeting(self._window.next_sequence(), self._byte_seconds)
        while not greeting.reply.done():
            if self._error is not None:
                raise self._copy(self._error)
            greeting.again.clear()
            self._write(greeting.wire)
            with suppress(TimeoutError):
                await asyncio.wait_for(greeting.again.wait(), self._timing.hello)
        self._greeting = None
        return greeting.reply.result()

    async def close(self) -> None:
        """Fail what is unanswered and free the port. Idempotent."""
        self.fail(DeviceLost(self.name, "closed"))
        if self._transport is not None:
            self._transport.abort()  # it may have failed first and been connected later
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), self._timing.close)

    def fail(self, error: DeviceError) -> None:
        """End it: every request fails with ``error``, the connection is dropped."""
        if self._error is not None:
            return
        self._error = error
        self._log.end()
        self._window.end(error)
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

    # ---- requests and answers

    def start(self, make: Make, samples: int = 0) -> asyncio.Future[Any]:
        """Send ``make(sequence)`` as soon as there is credit; raises the error it failed with.

        ``samples`` is how many samples it makes the board compute.
        """
        if self._error is not None:
            raise self._copy(self._error)
        return self._window.start(make, samples)

    def _write(self, wire: bytes) -> None:
        self.stats.sent += 1
        if self._transport is not None:
            self._transport.write(wire)

    def _silent(self, timeouts: int) -> None:
        self.fail(DeviceLost(self.name, f"silent: {timeouts} timeouts in a row"))

    def data_received(self, data: bytes) -> None:
        """Called by the transport: some bytes."""
        if self._greeting is not None:
            self._greeting.hear(data)
        for body in self._decoder.feed(data):
            if self._error is not None:
                return
            try:
                frame = frames.parse(body)
            except CodecError:
                self.stats.bad_frames += 1
            else:
                self.stats.received += 1
                self._window.heard()
                self._received(frame)

    def _received(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.HelloReply):
            self._hello_reply(frame)
        elif isinstance(frame, frames.Log) or frame.sequence == 0:
            self._log.show(frame)
        else:
            self._window.answer(frame)

    def _hello_reply(self, frame: frames.HelloReply) -> None:
        greeting = self._greeting
        if greeting is not None:
            if frame.sequence == greeting.sequence and not greeting.reply.done():
                greeting.reply.set_result(frame.board)
            greeting.again.set()  # the board has booted: say HELLO again at once
            return
        asked = self._window.asked(frame.sequence)
        if self.board is None or not (asked or frame.sequence == 0):
            self.stats.late += 1
        elif not frame.board.same_boot(self.board):
            self._booted(self.board, frame)
        elif asked:
            self._window.told(frame.sequence)

    def _booted(self, before: BoardSpec, frame: frames.HelloReply) -> None:
        self.stats.boots += 1
        if frame.board.same_program(before):
            self._window.booted(frame)
        else:
            self.fail(ProtocolError(self.name, "runs another program since its reset"))
