"""The requests of one link: within the board's credit, in time, answered once each."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeAlias

from asyncinfer.errors import DeviceError, DeviceTimeout, ProtocolError
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.constants import LAST_SEQUENCE, ErrorCode
from asyncinfer_drivers.cortex_m.quality import LineQuality
from asyncinfer_drivers.cortex_m.specs import BoardSpec
from asyncinfer_drivers.cortex_m.timing import Estimator, Timing

__all__ = ("Learned", "LinkStats", "Make", "TooLong", "Window")

#: makes a frame with the sequence number it is given
Make: TypeAlias = Callable[[int], frames.Frame]

#: longest pause after BUSY, in seconds
_LONGEST_BUSY = 0.5
#: HELLOs sent to find out what is lost, of which an answer is still recognised
_MOST_ASKED = 8
#: what a timeout counts during which damaged frames came: there is a board, on a bad line
_DAMAGED = 0.25


class TooLong:
    """What a request gives in place of a frame: it was lost, and should be sent in parts."""


@dataclass(eq=False)
class Learned:
    """What is known of a board and its line; it may be handed to the next link to the same."""

    estimator: Estimator
    quality: LineQuality


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
    #: numbers of its first and its latest sending, counted over all that was sent
    first: int = 0
    latest: int = 0
    sent_at: float = 0.0
    deadline: float = 0.0
    #: seconds to wait after the next BUSY
    pause: float = 0.0
    #: whether it waits after a BUSY: then its deadline is the end of that pause
    waiting: bool = False


class Window:
    """Sends requests as the board's credit allows, and again when they are lost.

    When an answer is overdue, the board is asked by HELLO, which costs little. It takes frames in
    order: if the answer to that comes first, all requests before it are lost; if none comes, it may
    be computing. Who answers is known before anything is sent again.

    ``write`` sends bytes; ``silent`` is called with the number of timeouts in a row.
    """

    def __init__(
        self,
        name: str,
        timing: Timing,
        byte_seconds: float,
        write: Callable[[bytes], None],
        silent: Callable[[int], None],
        learned: Learned | None = None,
    ) -> None:
        self.stats = LinkStats()
        self.board: BoardSpec | None = None
        self._name = name
        self._timing = timing
        self._byte_seconds = byte_seconds
        self._write = write
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        learned = learned or Learned(Estimator(timing), LineQuality())
        self._estimator, self._quality = learned.estimator, learned.quality
        self._estimator.heard()
        self._sequence = random.randrange(1, LAST_SEQUENCE)
        self._queue: deque[_Request] = deque()
        self._pending: dict[int, _Request] = {}
        #: by sequence, the number that a HELLO sent to find out what is lost has among sendings
        self._asked: dict[int, int] = {}
        self._sendings = 0
        #: timeouts since a whole frame came
        self._timeouts = 0.0
        #: damaged frames at the last one
        self._damaged = 0
        self._progress_at = 0.0
        self._timer: asyncio.Handle | None = None
        #: when it is due: a handle of uvloop's tells that only to the millisecond
        self._at = 0.0

    # ---- requests

    def start(self, make: Make, samples: int = 0) -> asyncio.Future[Any]:
        """Send ``make(sequence)`` as soon as there is credit."""
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
            sequence = self.next_sequence()
            frame = request.make(sequence)
            request.wire, request.kind = frames.encode(frame), type(frame)
            self._pending[sequence] = request
            self._send(request)
        self._arm()

    def next_sequence(self) -> int:
        """A number that no pending request has."""
        while True:
            self._sequence = self._sequence % LAST_SEQUENCE + 1
            if self._sequence not in self._pending and self._sequence not in self._asked:
                return self._sequence

    def end(self, error: DeviceError) -> None:
        """Fail every request with ``error``; leave no timer."""
        if self._timer is not None:
            self._timer.cancel()
        requests = [*self._pending.values(), *self._queue]
        self._pending.clear()
        self._queue.clear()
        for request in requests:
            _settle(request.future, type(error)(error.device, error.message))

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
            if self._at <= first:
                return
            self._timer.cancel()
        self._timer, self._at = self._loop.call_at(first, self._look), first

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = [item for item in self._pending.items() if item[1].deadline <= now]
        overdue = [item for item in due if not item[1].waiting]
        for sequence, request in due:
            if request.waiting:
                self._repeat(sequence, request)
        if overdue:
            self._timed_out()
            for _, request in overdue:
                request.deadline = self._deadline()
        self._pump()

    def _timed_out(self) -> None:
        damaged, self._damaged = self._damaged, self.stats.bad_frames
        self._timeouts += 1.0 if damaged == self._damaged else _DAMAGED
        self.stats.timeouts += 1
        self._estimator.timed_out()
        if self._timeouts >= self._timing.timeouts:
            self._estimator.forget()
            self._silent(ceil(self._timeouts))
        else:
            self._ask()

    def _ask(self) -> None:
        """Find out whether what is overdue is lost or still to be computed."""
        sequence = self.next_sequence()
        self._sendings += 1
        self._asked[sequence] = self._sendings
        if len(self._asked) > _MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        self._write(frames.encode(frames.Hello(sequence)))

    def asked(self, sequence: int) -> bool:
        """Whether a HELLO of this sequence was sent to find out what is lost."""
        return sequence in self._asked

    def told(self, sequence: int) -> None:
        """Such a HELLO was answered, by the same board: what was sent before it is lost."""
        number = self._asked[sequence]
        self._asked = {key: at for key, at in self._asked.items() if at > number}
        for key, request in sorted(self._pending.items(), key=lambda item: item[1].latest):
            if request.latest < number and not request.waiting:
                self._lost(key, request)
        self._pump()

    def _lost(self, sequence: int, request: _Request) -> None:
        self._quality.add(len(request.wire) + self._answer_bytes(request), lost=True)
        if request.samples > self.samples_per_frame and not request.future.cancelled():
            del self._pending[sequence]
            _settle(request.future, TooLong())
        else:
            self._repeat(sequence, request)

    def _answer_bytes(self, request: _Request) -> int:
        return request.samples * self.board.output_size if self.board else 0

    @property
    def measured(self) -> bool:
        """Whether it is known how long the board takes."""
        return self._estimator.measured

    @property
    def samples_per_frame(self) -> int:
        """Samples that a request should have on this line."""
        if self.board is None:
            return 1
        size = self.board.inputs[0].size + self.board.output_size
        return self._quality.samples(self.board.samples_per_frame, size)

    def _repeat(self, sequence: int, request: _Request) -> None:
        """Send it again, unless nobody wants it any more or it was sent too often."""
        if request.future.cancelled():
            del self._pending[sequence]
        elif request.tries >= self._timing.attempts:
            del self._pending[sequence]
            text = f"a request was sent {request.tries} times without a good answer"
            _settle(request.future, DeviceTimeout(self._name, text))
        else:
            self._send(request)

    # ---- answers

    def heard(self) -> None:
        """A whole frame came: the board is there."""
        self._timeouts = 0.0
        self._estimator.heard()

    def answer(self, frame: frames.Frame) -> None:
        """Take a frame that should answer a request."""
        if frame.sequence not in self._pending:
            self.stats.late += 1
        elif isinstance(frame, frames.Error) and frame.code == ErrorCode.BUSY:
            self._busy(self._pending[frame.sequence])
        else:
            self._answered(self._pending.pop(frame.sequence), frame)
            self._pump()

    def booted(self, frame: frames.HelloReply) -> None:
        """Everything the board was told is gone: tell it again."""
        self.board = frame.board
        self._asked.clear()
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
            _settle(request.future, ProtocolError(self._name, wrong))
        elif isinstance(frame, frames.Result):
            self._learn(request, frame, now)
        self._progress_at = now
        for sequence, other in list(self._pending.items()):
            if not other.waiting:
                other.deadline = self._deadline()
                if request.kind is other.kind and other.latest < request.first:
                    self._lost(sequence, other)  # one sent after it was answered before
        _settle(request.future, frame)

    def _learn(self, request: _Request, frame: frames.Result, now: float) -> None:
        self._quality.add(len(request.wire) + len(frame.data), lost=False)
        seconds = now - max(request.sent_at, self._progress_at)
        if request.tries == 1:
            self._estimator.add(seconds, request.samples)
        else:  # nobody knows which sending this answers
            hz = self.board.tick_hz if self.board else 0
            computed = frame.ticks / hz if hz else 0.0
            self._estimator.at_least(max(seconds, computed), request.samples)

    def _wrong(self, request: _Request, frame: frames.Frame) -> str:
        """Why this frame is no answer to the request; empty if it is one."""
        if isinstance(frame, frames.Error):
            return ""
        if not isinstance(frame, _ANSWERS[request.kind]):
            return f"answered {request.kind.__name__} with {type(frame).__name__}"
        if isinstance(frame, frames.Result) and self.board is not None:
            size = request.samples * sum(output.size for output in self.board.outputs)
            if frame.count != request.samples or len(frame.data) != size:
                return f"answered {request.samples} samples with {frame.count}, wrong in length"
        return ""


_ANSWERS: dict[type[frames.Frame], type[frames.Frame]] = {
    frames.Infer: frames.Result,
    frames.Ping: frames.Pong,
    frames.Stats: frames.StatsReply,
    frames.Reset: frames.HelloReply,
}


def _settle(future: asyncio.Future[Any], outcome: frames.Frame | DeviceError | TooLong) -> None:
    """Give a future its outcome, unless it has one or was cancelled."""
    if future.done():
        return
    if isinstance(outcome, DeviceError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
