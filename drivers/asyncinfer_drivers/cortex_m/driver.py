"""``CortexM4Driver``: a microcontroller that speaks the wire protocol, as one more device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

from asyncinfer.driver import ServiceTime
from asyncinfer.errors import AsyncInferError, ConfigError, DeviceLost, ProtocolError
from asyncinfer_drivers._shared.options import takes
from asyncinfer_drivers._shared.sharing import SharingDriver
from asyncinfer_drivers._shared.timing import BUDGET, line
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.constants import PROTOCOL_VERSION, ErrorCode
from asyncinfer_drivers.cortex_m.link import Link, LinkStats
from asyncinfer_drivers.cortex_m.options import CortexM4Options as CortexM4Options
from asyncinfer_drivers.cortex_m.ports import connector, is_serial, shared_by
from asyncinfer_drivers.cortex_m.quality import LineQuality
from asyncinfer_drivers.cortex_m.specs import BoardSpec
from asyncinfer_drivers.cortex_m.steps import Steps
from asyncinfer_drivers.cortex_m.timing import Estimator, Timing
from asyncinfer_drivers.cortex_m.transport import BITS_PER_BYTE
from asyncinfer_drivers.cortex_m.window import Learned, TooLong

__all__ = ("CortexM4Driver", "CortexM4Options", "DriverStats")

#: seconds of a call beside which what the first one takes longer does not matter
_SLOW = 5.0


@dataclass(frozen=True)
class DriverStats:
    """What ``stats`` returns."""

    #: the board's own counters
    device: frames.DeviceStats
    #: the host's counters, since the link was opened
    link: LinkStats
    #: what the board says it has computed for the answers used, since the driver was made
    compute_seconds: float
    #: samples answered, since the driver was made
    samples: int
    #: inputs with numbers that are beyond the board's range by over a tenth of it, and were cut off
    cut_off: int = 0


class CortexM4Driver(SharingDriver):
    """Runs inferences on a board at the end of a serial line.

    Its arguments are the fields of ``CortexM4Options``, which says what each means.

    The model is in the board's firmware; the first ``open`` raises ``ConfigError`` if it is not
    what ``model``, ``input_shape`` and ``output_shape`` say. A board that comes back with another
    program than it had then is refused with ``ProtocolError``, unless ``any_program`` is given.

    An input, or what ``preprocess`` makes of it, is an array, tensor or nested list of real
    numbers, in the shape that PyTorch's module takes, without the batch dimension. They are
    quantised here, and laid out, as the board says. The output is a float32 array, or tensor if
    the input was one, in the module's shape, or what ``postprocess`` makes of it.

    Lost and damaged frames are repeated, a reset of the board is survived. If the board is silent
    for ``timing.timeouts`` timeouts, or the port goes, calls end with ``DeviceLost``; later ones
    try to connect again.
    """

    #: where the model is, for ``asyncinfer.config``: a run's model is not passed on
    model_from: ClassVar[str] = "device"

    @takes(CortexM4Options)
    def __init__(self, options: CortexM4Options) -> None:
        name, port = options.name, options.port
        self.name = name
        self.max_batch = options.max_batch or 16
        self.concurrency = options.concurrency or 2
        self.shares = options.shares
        self._port = port
        serial = isinstance(port, str) and is_serial(port)
        self._connect = connector(name, port, options) if isinstance(port, str) else port
        self._byte_seconds = BITS_PER_BYTE / options.baudrate if serial else 0.0
        self._expected = {
            "model": options.model,
            "input_shape": None if options.input_shape is None else tuple(options.input_shape),
            "output_shape": None if options.output_shape is None else tuple(options.output_shape),
        }
        self._steps = Steps(options)
        self._any_program = options.any_program
        self._timing = options.timing or Timing()
        #: what the board runs: nothing else is taken for it
        self._program: BoardSpec | None = None
        self._learned = self._nothing()
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._wanted = False
        self._compute_seconds = 0.0
        self._samples = 0

    def _nothing(self) -> Learned:
        return Learned(Estimator(self._timing), LineQuality())

    @classmethod
    def leads(
        cls, configured: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
        """What asks the ports of this host and the config for boards: ``asyncinfer devices``."""
        from asyncinfer_drivers.cortex_m.discovery import leads

        return leads(cls, configured)

    def _usually_shared(self) -> frozenset[str]:
        return shared_by(self._port) if isinstance(self._port, str) else frozenset()

    @property
    def board(self) -> BoardSpec | None:
        """What the board said about itself when it was last opened; ``None`` while closed."""
        return self._link.board if self._link else None

    # ---- its life

    async def open(self) -> None:
        """Open the port, say HELLO until the board answers, check what it is.

        Raises ``ConfigError`` if it is not what is expected, or ``ProtocolError`` if it was that
        before, ``DeviceLost`` if the port cannot be opened, ``DeviceTimeout`` if nobody answers
        within ``timing.open``.
        """
        self._wanted = True
        self._steps.start()
        try:
            await self._connected()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Free the port, end the calls in flight with ``DeviceLost``. Idempotent."""
        self._wanted = False
        link, self._link = self._link, None
        try:
            if link is not None:
                await link.close()
        finally:
            await self._steps.stop()

    async def _connected(self) -> Link:
        """The link, made anew if it was lost; one caller does it, the others wait."""
        if not self._wanted:
            raise DeviceLost(self.name, "not open")
        if self._link is not None and self._link.up:
            return self._link
        async with self._opening:
            if self._link is not None and self._link.up:
                return self._link
            return await self._connect_again()

    async def _connect_again(self) -> Link:
        if self._link is not None:
            await self._link.close()
        if not self._wanted:
            raise DeviceLost(self.name, "not open")
        link = Link(
            self.name,
            self._connect,
            self._timing,
            byte_seconds=self._byte_seconds,
            learned=self._learned,
        )
        self._link = link
        try:
            self._take(await link.open())
        except BaseException:
            await link.close()
            raise
        if self._link is not link:
            await link.close()
            raise DeviceLost(self.name, "closed while it was opening")
        return link

    def _take(self, board: BoardSpec) -> None:
        """Work with this board from now on, if it is what it was before."""
        known = self._program
        if known is not None and not self._any_program and not board.same_program(known):
            text = f"came back with {_told(board)}, but had {_told(known)} at first"
            raise ProtocolError(self.name, f"{text}: any_program=True would take it")
        try:
            self._check(board)
        except ConfigError as error:
            if known is None:
                raise
            text = str(error).removeprefix(f"{self.name}: ")
            raise ProtocolError(self.name, f"came back, but {text}") from error
        if known is None or not board.same_program(known):
            if known is not None:
                self._learned = self._nothing()
            self._program = board
            self._steps.fit(board)

    def _check(self, board: BoardSpec) -> None:
        """Raise ``ConfigError`` unless the board runs what is expected."""
        if board.protocol > PROTOCOL_VERSION:
            text = f"the board speaks protocol {board.protocol}, this up to {PROTOCOL_VERSION}"
            raise ConfigError(f"{self.name}: {text}: install a newer asyncinfer")
        if len(board.inputs) != 1 or not board.outputs:
            counts = f"{len(board.inputs)} inputs and {len(board.outputs)} outputs"
            raise ConfigError(f"{self.name}: the board's model has {counts}, not one and some")
        if not board.samples_per_frame:
            room = f"receive buffer of {board.receive_buffer} bytes"
            raise ConfigError(f"{self.name}: not one input fits the board's {room}")
        given, made = self._steps.codecs(board)
        found: dict[str, Sequence[object]] = {
            "model": (board.model, board.model.rpartition("-")[0]),
            "input_shape": given.shapes,
            "output_shape": (made.shape,),
        }
        for what, expected in self._expected.items():
            if expected is not None and expected not in found[what]:
                text = f"the board has {what} {found[what][0]!r}, not {expected!r}"
                raise ConfigError(f"{self.name}: {text}")

    # ---- its work

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; an output, or the error that is that task's, for each."""
        link = await self._connected()
        program = self._program
        samples, tensors = await self._steps.before(batch)
        outputs: list[Any] = list(samples)
        good = [index for index, sample in enumerate(samples) if isinstance(sample, bytes)]
        answers = await self._run(link, [samples[index] for index in good])
        for index, answer in zip(good, answers, strict=True):
            outputs[index] = answer
        results = await self._steps.after(outputs, good, tensors)
        if self._program is not program:
            raise DeviceLost(self.name, "got another program while it was computing")
        return results

    async def _run(self, link: Link, samples: Sequence[bytes], most: int = 0) -> list[Any]:
        """The bytes of each sample's output, or an error in its place."""
        size = most or link.samples_per_frame
        first = size if link.measured else 1  # its answer tells how long to wait for the others
        starts = [0, *range(first, len(samples), size)] if samples else []
        parts = [samples[at:end] for at, end in pairwise([*starts, len(samples)])]
        futures = list[asyncio.Future[Any]]()
        try:
            for part in parts:
                make = partial(_infer, count=len(part), data=b"".join(part))
                futures.append(link.start(make, len(part)))
            answers = [await future for future in futures]
        finally:
            _give_up(futures)
        outputs = list[Any]()
        for part, answer in zip(parts, answers, strict=True):
            outputs += await self._outputs(link, part, answer)
        return outputs

    async def _outputs(self, link: Link, part: Sequence[bytes], answer: Any) -> list[Any]:
        if isinstance(answer, TooLong):
            return await self._run(link, part)
        if isinstance(answer, frames.Result):
            board = link.board
            self._samples += answer.count
            self._compute_seconds += answer.ticks / (board.tick_hz or 1) if board else 0.0
            return list(_cut(answer.data, len(part)))
        if answer.code != ErrorCode.MODEL_FAILED:
            raise ProtocolError(self.name, f"refused a request: {answer}")
        if len(part) > 1:  # run them one by one, to find the one at fault
            return await self._run(link, part, 1)
        return [AsyncInferError(f"device {self.name!r}: {answer}")]

    # ---- its health

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with zeros: one that is not counted, one sample, and a whole frame.

        Of a slow board the first call counts.
        """
        link = await self._connected()
        one = await self._time(link, 1)
        if one < _SLOW:
            one = await self._time(link, 1)
        fitting = link.board.samples_per_frame if link.board else 1
        size = min(self.max_batch, fitting, int(BUDGET / max(one, 1e-6)))
        if size < 2:
            return ServiceTime(0.0, one)
        return line(one, size, await self._time(link, size))

    async def _time(self, link: Link, count: int) -> float:
        clock = asyncio.get_running_loop().time
        started = clock()
        await self._run(link, [self._steps.zeros()] * count)
        return clock() - started

    async def probe(self) -> None:
        """Return once the board has answered a PING; raise ``DeviceError`` if it does not."""
        await self._ask(partial(frames.Ping, data=b"probe"))

    async def stats(self) -> DriverStats:
        """The counters of the board, the link and the driver; raises ``DeviceError``."""
        link = await self._connected()
        reply = await self._ask(frames.Stats)
        known = self._compute_seconds, self._samples, self._steps.cut_off
        return DriverStats(reply.stats, link.stats, *known)

    async def reset(self) -> BoardSpec:
        """Have the board boot, and wait for it; calls in flight are repeated by themselves."""
        reply = await self._ask(frames.Reset)
        board: BoardSpec = reply.board
        return board

    async def _ask(self, make: Callable[[int], frames.Frame]) -> Any:
        link = await self._connected()
        future = link.start(make)
        try:
            reply = await future
        finally:
            _give_up([future])
        if isinstance(reply, frames.Error):
            raise ProtocolError(self.name, f"refused a request: {reply}")
        return reply


def _told(board: BoardSpec) -> str:
    return f"model {board.model!r} in firmware {board.firmware!r} on {board.board!r}"


def _infer(sequence: int, *, count: int, data: bytes) -> frames.Infer:
    return frames.Infer(sequence, count, data)


def _cut(data: bytes, count: int) -> Iterator[bytes]:
    size = len(data) // count
    return (data[at : at + size] for at in range(0, size * count, size))


def _give_up(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel what is not done; mark errors as seen, so that asyncio does not report them."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()
