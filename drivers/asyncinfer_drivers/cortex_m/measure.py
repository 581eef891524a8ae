"""Ratios of the link to a Cortex-M4, measured on the emulated board; each command prints JSON.

python -m asyncinfer_drivers.cortex_m.measure link      # of a paced line's byte rate
python -m asyncinfer_drivers.cortex_m.measure compute   # of the time, with a slow model
python -m asyncinfer_drivers.cortex_m.measure overhead  # of a round trip, against a bare echo

The link and the bare bytes take short turns over one open port, and each turn is compared with
its neighbour: what slows the host, and QEMU with it, meets both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.constants import PING_BYTES
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.link import Link
from asyncinfer_drivers.cortex_m.ports import connector
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import (
    BITS_PER_BYTE,
    ByteTransport,
    Connect,
    Receiver,
    SerialOptions,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ("compute", "link", "main", "overhead", "slow_model")

Facts: TypeAlias = dict[str, Any]
T = TypeVar("T")

#: how the port is opened; QEMU ignores it
_SERIAL = SerialOptions(baudrate=115_200, dtr=False, rts=False)
#: round trips in one turn: few, as a busy host slows QEMU for tenths of seconds
_TRIPS = 10
#: inferences in one turn: few, for the same reason
_INFERENCES = 8
#: seconds until a turn of bare bytes is given up: nobody sends them again
_TURN_TIMEOUT = 60.0


async def link(elf: str, *, baudrate: int = 115_200, inferences: int = 600) -> Facts:
    """The share of a line's bytes that requests fill, with several in flight.

    ``of_limit`` is the share of what the line carries or the board takes in, whichever is less;
    what the board takes in is shown by the same frames without the link, in the turn beside.
    """
    turns = max(1, inferences // _INFERENCES)
    count = min(inferences, _INFERENCES)
    async with EmulatedCortexM4(elf, baudrate=baudrate) as board, _tapped(board) as (linked, tap):
        await _infer(linked, count)  # behind what is left over of the boot
        spec = linked.board
        assert spec is not None  # noqa: S101  # it is open
        wire = frames.encode(frames.Infer(1, 1, _sample(linked)))
        bare = _Bare(tap, wire, spec.frames_in_flight)
        pairs = await _by_turns(
            lambda: _streamed(bare, count), lambda: _answered(linked, count), turns
        )
        least = count * len(wire) * BITS_PER_BYTE / baudrate  # what a turn takes the line
        shares = [max(free, least) / driven for free, driven in pairs]
        free, seconds = (sum(times) for times in zip(*pairs, strict=True))
        return {
            "link_efficiency": turns * least / seconds,
            "bare_efficiency": turns * least / free,
            "of_limit": statistics.median(shares),
            "turns": shares,
            "baudrate": baudrate,
            "inferences": turns * count,
            "bytes_per_request": len(wire),
            "resent": linked.stats.resent,
            "in_flight": spec.frames_in_flight,
            "seconds": seconds,
        }


async def compute(elf: str, *, icount: str = "shift=5,align=on", inferences: int = 60) -> Facts:
    """The share of the time that the board computes, with a model slower than the line."""
    async with EmulatedCortexM4(elf, icount=icount) as board, _linked(board) as linked:
        await _infer(linked, 2)
        seconds, ticks = await _infer(linked, inferences)
        assert linked.board is not None  # noqa: S101  # it is open
        busy = ticks / linked.board.tick_hz
        return {
            "compute_utilisation": busy / seconds,
            "compute_seconds": busy,
            "seconds": seconds,
            "inferences": inferences,
            "icount": icount,
        }


async def overhead(elf: str, *, pings: int = 600) -> Facts:
    """A PING through the link against the same bytes without it, in turns over one port."""
    turns, count = max(1, pings // _TRIPS), min(pings, _TRIPS)
    async with EmulatedCortexM4(elf) as board, _tapped(board) as (linked, tap):
        await _ping(linked)  # behind what is left over of the boot
        bare = _Bare(tap, frames.encode(_PING), 1)
        pairs = await _by_turns(
            lambda: _trips(lambda: bare.answers(1), count),
            lambda: _trips(lambda: _ping(linked), count),
            turns,
        )
    median = statistics.median
    return {
        "overhead": median(median(driven) / median(echo) for echo, driven in pairs),
        "bare_echo_seconds": median(trip for echo, _ in pairs for trip in echo),
        "link_seconds": median(trip for _, driven in pairs for trip in driven),
        "bytes": len(frames.encode(_PING)),
        "pings": turns * count,
    }


async def _by_turns(
    bare: Callable[[], Awaitable[T]], linked: Callable[[], Awaitable[T]], turns: int
) -> list[tuple[T, T]]:
    """What both gave, turn by turn; every other time the link begins."""
    pairs = list[tuple[T, T]]()
    for turn in range(turns):
        if turn % 2:
            driven = await linked()
            pairs.append((await bare(), driven))
        else:
            pairs.append((await bare(), await linked()))
    return pairs


_PING = frames.Ping(1, bytes(range(1, PING_BYTES + 1)))


@asynccontextmanager
async def _linked(board: EmulatedCortexM4, connect: Connect | None = None) -> AsyncIterator[Link]:
    connect = connect or connector("board", board.port, _SERIAL)
    link = Link("board", connect, Timing())
    try:
        await link.open()
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def _tapped(board: EmulatedCortexM4) -> AsyncIterator[tuple[Link, _Tap]]:
    """An open link, and its port."""
    tap = _Tap(connector("board", board.port, _SERIAL))
    async with _linked(board, tap.connect) as link:
        yield link, tap


def _sample(link: Link) -> bytes:
    """One input, without zero bytes."""
    assert link.board is not None  # noqa: S101  # it is open
    size = link.board.inputs[0].size
    return (bytes(range(1, 256)) * (size // 255 + 1))[:size]


def _requests(link: Link, inferences: int) -> list[asyncio.Future[Any]]:
    """So many inferences of one sample each, as soon as there is credit."""
    data = _sample(link)
    return [
        link.start(lambda sequence: frames.Infer(sequence, 1, data), 1) for _ in range(inferences)
    ]


async def _infer(link: Link, inferences: int) -> tuple[float, int]:
    """Seconds and the board's ticks for so many inferences."""
    start = perf_counter()
    results = await asyncio.gather(*_requests(link, inferences))
    seconds = perf_counter() - start
    return seconds, sum(result.ticks for result in results)


async def _streamed(bare: _Bare, inferences: int) -> float:
    """As ``_answered``, without the link."""
    times = await bare.answers(inferences + 1)
    return times[-1] - times[0]


async def _answered(link: Link, inferences: int) -> float:
    """Seconds for so many inferences, counted from the answer to one before them."""
    first, *others = _requests(link, inferences + 1)
    await first
    start = perf_counter()
    await asyncio.gather(*others)
    return perf_counter() - start


async def _ping(link: Link) -> None:
    await link.start(lambda sequence: frames.Ping(sequence, _PING.data))


async def _trips(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Seconds of each of so many calls."""
    times = [perf_counter()]
    for _ in range(count):
        await call()
        times.append(perf_counter())
    return [after - before for before, after in pairwise(times)]


class _Tap:
    """A link's open port, which others may borrow while the link has nothing to do."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._link: Receiver
        self.borrower: Receiver | None = None
        self.transport: ByteTransport

    async def connect(self, link: Receiver) -> ByteTransport:
        """The ``Connect`` of the link."""
        self._link = link
        self.transport = await self._connect(self)
        return self.transport

    def data_received(self, data: bytes) -> None:
        """For whoever has the port."""
        (self.borrower or self._link).data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        """For both."""
        if self.borrower is not None:
            self.borrower.connection_lost(error)
        self._link.connection_lost(error)


class _Bare:
    """The same frame again and again, so many of it unanswered at a time, without the link.

    Answers are counted by the zeros around them, and not read.
    """

    def __init__(self, tap: _Tap, wire: bytes, in_flight: int) -> None:
        self._tap, self._wire, self._in_flight = tap, wire, in_flight
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._zeros = self._unsent = self._wanted = 0
        self._times: list[float] = []

    async def answers(self, count: int) -> list[float]:
        """When each of so many answers came, by a clock finer than uvloop's milliseconds."""
        self._done = asyncio.get_running_loop().create_future()
        self._zeros, self._times = 0, []
        self._unsent = self._wanted = count
        self._tap.borrower = self
        try:
            for _ in range(self._in_flight):
                self._send()
            async with asyncio.timeout(_TURN_TIMEOUT):
                await self._done
        finally:
            self._tap.borrower = None
        return self._times

    def _send(self) -> None:
        if self._unsent:
            self._unsent -= 1
            self._tap.transport.write(self._wire)

    def data_received(self, data: bytes) -> None:
        """A part of an answer, or of several."""
        self._zeros += data.count(0)
        while len(self._times) < self._zeros // 2:
            self._times.append(perf_counter())
            self._send()
        if len(self._times) >= self._wanted and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing more comes."""
        if not self._done.done():
            self._done.set_exception(error or DeviceLost("board", "connection lost"))


def slow_model() -> nn.Module:
    """A model of random weights that takes a Cortex-M4 far longer than the line takes its input."""
    import torch
    from torch import nn

    torch.manual_seed(42)
    channels = 32
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels * 4 * 4, 10),
    ).eval()


def _firmware(command: str, folder: str) -> str:
    import numpy as np

    from asyncinfer_drivers.cortex_m.build import build_firmware

    if command != "compute":
        return str(build_firmware("digits", "digits").elf)
    samples = np.random.default_rng(42).random((64, 1, 8, 8), dtype=np.float32)
    return str(build_firmware(slow_model(), samples, output=folder).elf)


def main() -> None:
    """Run one command."""
    commands: dict[str, Callable[[str], Coroutine[Any, Any, Facts]]]
    commands = {"link": link, "compute": compute, "overhead": overhead}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=commands)
    parser.add_argument("--elf", help="another firmware than digits, or the slow model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asyncinfer-firmware-") as folder:
        elf = arguments.elf or _firmware(arguments.command, folder)
        measured = commands[arguments.command](elf)
        print(json.dumps(asyncio.run(measured)))


if __name__ == "__main__":
    main()
