"""Ratios of the link to a Cortex-M4, measured on the emulated board; each command prints JSON.

python -m asyncinfer_drivers.cortex_m.measure link      # of a paced line's byte rate
python -m asyncinfer_drivers.cortex_m.measure compute   # of the time, with a slow model
python -m asyncinfer_drivers.cortex_m.measure overhead  # of a round trip, against a bare echo
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.constants import PING_BYTES
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.link import Link
from asyncinfer_drivers.cortex_m.proxy import BITS_PER_BYTE
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import ByteTransport, Connect, connector

if TYPE_CHECKING:
    from torch import nn

__all__ = ("compute", "link", "main", "overhead")

Facts: TypeAlias = dict[str, Any]

#: what a port is opened with: QEMU does not heed it
_SERIAL = (115_200, False, False)
#: rounds of each kind when two are measured side by side
_ROUNDS = 7


async def link(elf: str, *, baudrate: int = 115_200, inferences: int = 600) -> Facts:
    """The share of a line's bytes that requests fill, with several in flight."""
    async with EmulatedCortexM4(elf, baudrate=baudrate) as board, _linked(board) as linked:
        seconds, _ = await _infer(linked, inferences)
        assert linked.board is not None  # noqa: S101  # it is open
        data = bytes(range(1, 256)) * 256
        request = frames.Infer(1, 1, data[: linked.board.inputs[0].size])
        size = len(frames.encode(request))
        return {
            "link_efficiency": inferences * size * BITS_PER_BYTE / baudrate / seconds,
            "baudrate": baudrate,
            "inferences": inferences,
            "bytes_per_request": size,
            "resent": linked.stats.resent,
            "in_flight": linked.board.frames_in_flight,
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


async def overhead(elf: str, *, pings: int = 200) -> Facts:
    """A PING through the link against the same bytes without it, in turns over one port."""
    bare, linked = list[float](), list[float]()
    async with EmulatedCortexM4(elf) as board:
        connect = connector("bare", board.port, _SERIAL)
        async with _linked(board):
            pass  # it has booted
        for _ in range(_ROUNDS):
            bare += await _bare(connect, pings)
            async with _linked(board) as link:
                linked += [await _timed(lambda: _ping(link)) for _ in range(pings)]
    echo, driven = statistics.median(bare), statistics.median(linked)
    return {
        "overhead": driven / echo,
        "bare_echo_seconds": echo,
        "link_seconds": driven,
        "bytes": len(frames.encode(_PING)),
        "pings": len(bare),
    }


_PING = frames.Ping(1, bytes(range(1, PING_BYTES + 1)))


@asynccontextmanager
async def _linked(board: EmulatedCortexM4) -> AsyncIterator[Link]:
    link = Link("board", connector("board", board.port, _SERIAL), Timing())
    try:
        await link.open()
        yield link
    finally:
        await link.close()


async def _infer(link: Link, inferences: int) -> tuple[float, int]:
    """Seconds and the board's ticks for so many inferences, of one sample each."""
    assert link.board is not None  # noqa: S101  # it is open
    data = bytes(range(1, 256)) * (link.board.inputs[0].size // 255 + 1)
    data = data[: link.board.inputs[0].size]
    start = asyncio.get_running_loop().time()
    requests = [
        link.start(lambda sequence: frames.Infer(sequence, 1, data), 1) for _ in range(inferences)
    ]
    results = await asyncio.gather(*requests)
    seconds = asyncio.get_running_loop().time() - start
    return seconds, sum(result.ticks for result in results)


async def _ping(link: Link) -> None:
    await link.start(lambda sequence: frames.Ping(sequence, _PING.data))


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await call()
    return loop.time() - start


class _Echo:
    """Counts what comes back; knows no frames."""

    def __init__(self) -> None:
        self.missing = 0
        self.whole = asyncio.Event()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Some of the bytes."""
        self.missing -= len(data)
        if self.missing <= 0:
            self.whole.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The port is free."""
        self.lost.set()

    async def trip(self, transport: ByteTransport, wire: bytes) -> None:
        """Send bytes and wait for as many."""
        self.missing = len(wire)
        self.whole.clear()
        transport.write(wire)
        await self.whole.wait()


async def _bare(connect: Connect, pings: int) -> list[float]:
    echo, wire = _Echo(), frames.encode(_PING)
    transport = await connect(echo)
    try:
        return [await _timed(lambda: echo.trip(transport, wire)) for _ in range(pings)]
    finally:
        transport.abort()
        await echo.lost.wait()


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
