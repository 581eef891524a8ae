"""The device's end of the protocol in Python: a board in memory, for tests and as a reference.

It does what firmware does, in the same order, and nothing more: takes frames one by one, computes
for as long as it is told, keeps no record of requests, forgets everything at a reset.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import CodecError, Decoder, checked
from asyncinfer_drivers.cortex_m.constants import (
    OVERHEAD_BYTES,
    RESET_MAGIC,
    ErrorCode,
    LogLevel,
)
from asyncinfer_drivers.cortex_m.specs import BoardSpec
from asyncinfer_drivers.cortex_m.transport import (
    ByteTransport,
    MemoryTransport,
    Receiver,
    memory_pair,
)

__all__ = ("FirmwarePeer",)

#: computes one sample's output from its input; what it raises is MODEL_FAILED
Compute = Callable[[bytes], bytes]


@dataclass
class FirmwarePeer:
    """A board whose model is ``compute``; ``connect`` is a ``Connect`` for the driver's port.

    ``wrap`` may put something between the host and this end, a lossy line say: given one end of
    a line it returns what the host or the board writes to instead.
    """

    spec: BoardSpec
    compute: Compute
    #: seconds to compute a frame, and for each sample in it
    frame_seconds: float = 0.0
    sample_seconds: float = 0.0
    #: seconds a boot takes; what arrives meanwhile is lost
    boot_seconds: float = 0.0
    wrap: Callable[[MemoryTransport], ByteTransport] = field(default=lambda end: end)
    #: answers nothing while set
    hung: bool = False
    #: ``connect`` fails while set
    unplugged: bool = False

    def __post_init__(self) -> None:
        self.stats = frames.DeviceStats(boots=self.spec.boot_counter)
        self._decoder = Decoder(self.spec.receive_buffer)
        #: requests in the order they came; the first one is an INFER that is being computed
        self._queue: deque[frames.Frame] = deque()
        self._line: ByteTransport | None = None
        self._end: MemoryTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._booting = False

    # ---- the line

    async def connect(self, receiver: Receiver) -> ByteTransport:
        """Plug the host in."""
        if self.unplugged:
            raise ConnectionError("no such port")
        host, board = memory_pair(receiver, self)
        self._decoder = Decoder(self.spec.receive_buffer)
        self._end, self._line = board, self.wrap(board)
        return self.wrap(host)

    def attach(self, line: ByteTransport) -> None:
        """Write to ``line``; whoever has it calls ``data_received`` and ``connection_lost``."""
        self._decoder = Decoder(self.spec.receive_buffer)
        self._line = line

    def unplug(self) -> None:
        """Pull the cable; ``unplugged`` tells whether it can be plugged in again."""
        if self._end is not None:
            self._end.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The host hung up; the board goes on with what it has."""
        self._line = self._end = None

    def stop(self) -> None:
        """Leave nothing behind on the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()

    # ---- booting

    def reset(self) -> None:
        """Forget everything but the boot counter; come back after ``boot_seconds``."""
        self.stop()
        boots = self.spec.boot_counter + 1
        self.spec = replace(self.spec, boot_counter=boots)
        self.stats = frames.DeviceStats(boots=boots)
        self._booting = True
        self._timer = asyncio.get_running_loop().call_later(self.boot_seconds, self._booted)

    def _booted(self) -> None:
        self._booting = False
        self._timer = None
        self._decoder = Decoder(self.spec.receive_buffer)
        self.send(frames.HelloReply(0, self.spec))

    # ---- frames

    def send(self, frame: frames.Frame) -> None:
        """Send a frame to the host, if there is one."""
        if self._line is not None and not self._booting:
            self._count(frames_sent=1, errors_sent=int(isinstance(frame, frames.Error)))
            self._line.write(frames.encode(frame))

    def log(self, level: LogLevel, text: str) -> None:
        """Send a LOG."""
        self.send(frames.Log(0, level, text))

    def data_received(self, data: bytes) -> None:
        """Some bytes from the host."""
        if self._booting or self.hung:
            return
        before = self._decoder.framing_errors
        bodies = self._decoder.feed(data)
        self._count(framing_errors=self._decoder.framing_errors - before)
        for body in bodies:
            self._body(body)

    def _body(self, body: bytes) -> None:
        if not OVERHEAD_BYTES <= len(body) <= self.spec.receive_buffer:
            self._count(framing_errors=1)
            return
        try:
            content = checked(body)
        except CodecError:
            self._count(crc_errors=1)
            return
        self._count(frames_received=1)
        sequence = int.from_bytes(content[2:4], "little")
        try:
            frame = frames.parse(body)
        except CodecError as error:
            known = content[1] in _REQUESTS
            code = ErrorCode.BAD_LENGTH if known else ErrorCode.BAD_TYPE
            self.send(frames.Error(sequence, code, 0, str(error)))
        else:
            self._request(frame)

    def _request(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Infer):
            self._infer(frame)
        elif self._queue:
            self._queue.append(frame)
        else:
            self._answer(frame)

    def _answer(self, frame: frames.Frame) -> None:
        sequence = frame.sequence
        match frame:
            case frames.Hello():
                self.send(frames.HelloReply(sequence, self.spec))
            case frames.Ping(data=data) if not isinstance(frame, frames.Pong):
                self.send(frames.Pong(sequence, data))
            case frames.Stats():
                self.send(frames.StatsReply(sequence, self.stats))
            case frames.Reset(magic=magic) if magic == RESET_MAGIC:
                self.reset()
            case frames.Reset():
                self.send(frames.Error(sequence, ErrorCode.BAD_MAGIC))
            case _:
                self.send(frames.Error(sequence, ErrorCode.BAD_TYPE))

    # ---- computing

    def _infer(self, frame: frames.Infer) -> None:
        size = frame.count * self.spec.inputs[0].size
        if not 1 <= frame.count <= self.spec.max_samples:
            code, detail = ErrorCode.TOO_MANY, self.spec.max_samples
        elif len(frame.data) != size:
            code, detail = ErrorCode.BAD_LENGTH, size + 4
        elif self._infers() >= self.spec.frames_in_flight:
            code, detail = ErrorCode.BUSY, 0
        else:
            self._queue.append(frame)
            if len(self._queue) == 1:
                self._begin()
            return
        self.send(frames.Error(frame.sequence, code, detail))

    def _infers(self) -> int:
        return sum(isinstance(frame, frames.Infer) for frame in self._queue)

    def _begin(self) -> None:
        frame = self._queue[0]
        if not isinstance(frame, frames.Infer):
            self._queue.popleft()
            self._answer(frame)
            if self._queue:
                self._begin()
            return
        seconds = self.frame_seconds + frame.count * self.sample_seconds
        if seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._finish, frame)
        else:
            self._finish(frame)

    def _finish(self, frame: frames.Infer) -> None:
        self._timer = None
        self._queue.popleft()
        size = self.spec.inputs[0].size
        samples = [frame.data[at * size : (at + 1) * size] for at in range(frame.count)]
        seconds = self.frame_seconds + frame.count * self.sample_seconds
        ticks = round(seconds * self.spec.tick_hz)
        try:
            outputs = b"".join(map(self.compute, samples))
        except Exception as error:
            self.send(frames.Error(frame.sequence, ErrorCode.MODEL_FAILED, 1, str(error)))
        else:
            self._count(inferences=frame.count)
            self.send(frames.Result(frame.sequence, frame.count, ticks, outputs))
        if self._queue:
            self._begin()

    def _count(self, **more: int) -> None:
        now = {name: getattr(self.stats, name) + number for name, number in more.items()}
        self.stats = replace(self.stats, **now)


_REQUESTS = {kind.TYPE for kind in (frames.Hello, frames.Infer, frames.Ping, frames.Stats)}
_REQUESTS.add(frames.Reset.TYPE)
