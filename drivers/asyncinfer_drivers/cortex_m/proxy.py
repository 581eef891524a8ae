"""A serial line with a true baud rate and faults, between a port for the driver and a board.

The driver opens ``SerialProxy.port``, a pseudo-terminal under a name that survives re-plugging. The
board's end is a socket: QEMU's serial line, or a Python peer in a test. Bytes go through one
event loop, without threads.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import select
import socket
import tty
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.checking import check
from asyncinfer_drivers.cortex_m.transport import BITS_PER_BYTE

__all__ = ("Faults", "SerialProxy")


#: bytes moved at once on a line without a baud rate
_CHUNK_BYTES = 4096
#: seconds of line time moved at once on a paced line
_SLICE_SECONDS = 0.002
#: seconds of line time that are made up for at most, after the event loop was late
_CATCH_UP_SECONDS = 0.05
#: seconds between two checks whether the driver has opened the port
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Faults:
    """How likely each fault is, for every byte in either direction."""

    #: one of its bits is inverted
    flip: float = 0.0
    #: it does not arrive
    drop: float = 0.0
    #: it arrives twice
    double: float = 0.0
    #: it, and everything behind it, arrives ``pause`` seconds late
    delay: float = 0.0
    #: seconds a delayed byte waits
    pause: float = 0.02
    #: the same seed and bytes meet the same faults
    seed: int = 42

    def __post_init__(self) -> None:
        check(type(self), vars(self), "faults")
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"faults: their chances are 0 to 1 in sum, not {self.rate!r}")

    @classmethod
    def mixed(cls, rate: float, seed: int = 42) -> Faults:
        """Flipped, dropped and doubled bytes alike, ``rate`` of all bytes in sum."""
        return cls(flip=rate / 3, drop=rate / 3, double=rate / 3, seed=seed)

    @property
    def rate(self) -> float:
        """The chance that anything happens to a byte."""
        return self.flip + self.drop + self.double + self.delay


class _Noise:
    """Puts faults into one direction's bytes, at random distances."""

    def __init__(self, faults: Faults, salt: int, counts: Counter[str]) -> None:
        self._faults, self._counts = faults, counts
        self._random = random.Random(faults.seed * 2 + salt)
        self._ahead = self._gap()

    def _gap(self) -> float:
        """Good bytes before the next fault."""
        rate = self._faults.rate
        if rate <= 0:
            return math.inf
        return 0 if rate >= 1 else int(math.log(1 - self._random.random()) / math.log1p(-rate))

    def __call__(self, data: bytes) -> tuple[bytes, float]:
        """What arrives of ``data``, and the seconds it is late."""
        if self._ahead >= len(data):
            self._ahead -= len(data)
            return data, 0.0
        arrived, late, position = bytearray(), 0.0, 0
        while position + self._ahead < len(data):
            hit = position + int(self._ahead)
            arrived += data[position:hit]
            replaced, pause = self._fault(data[hit])
            arrived += replaced
            late += pause
            position, self._ahead = hit + 1, self._gap()
        arrived += data[position:]
        self._ahead -= len(data) - position
        return bytes(arrived), late

    def _fault(self, byte: int) -> tuple[bytes, float]:
        faults = self._faults
        weights = {kind: getattr(faults, kind) for kind in ("flip", "drop", "double", "delay")}
        (kind,) = self._random.choices(list(weights), list(weights.values()))
        self._counts[kind] += 1
        if kind == "flip":
            return bytes([byte ^ 1 << self._random.randrange(8)]), 0.0
        copies = {"drop": 0, "double": 2, "delay": 1}[kind]
        return bytes([byte]) * copies, faults.pause if kind == "delay" else 0.0


class SerialProxy:
    """Joins a pseudo-terminal, ``port``, to a board's socket; ``async with`` runs and ends it.

    While nobody has the port open, what the board sends is lost, as on a real line. When the
    board's end closes, the port hangs up.
    """

    def __init__(
        self,
        link: Path,
        board: socket.socket,
        *,
        baudrate: int | None = None,
        faults: Faults | None = None,
    ) -> None:
        """Listen at ``link``; no ``baudrate``: as fast as it goes. Owns the socket from now on."""
        board.setblocking(False)
        self._link, self._board, self._baudrate = link, board, baudrate
        self._master = -1
        self._tasks: list[asyncio.Task[None]] = []
        #: faults so far, by kind
        self.counts: Counter[str] = Counter()
        #: bytes taken from the driver, and from the board
        self.bytes_down = self.bytes_up = 0
        self.disturb(faults or Faults())

    @property
    def port(self) -> str:
        """What the driver opens; the same after ``cut`` and ``replug``."""
        return str(self._link)

    async def __aenter__(self) -> SerialProxy:
        self.replug()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def replug(self) -> None:
        """Plug the line in, if it is not: under the same name, on a new pseudo-terminal."""
        if self._master >= 0:
            return
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        tty.setraw(slave)
        name = os.ttyname(slave)
        os.close(slave)  # from here on the kernel tells whether the driver has it open
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(name)
        pumps = self._from_driver(self._master), self._from_board(self._master)
        self._tasks = [asyncio.create_task(pump) for pump in pumps]

    def disturb(self, faults: Faults) -> None:
        """Put these faults into what passes from now on, instead of those before."""
        self._down, self._up = (_Noise(faults, salt, self.counts) for salt in (0, 1))

    async def cut(self) -> None:
        """Pull the plug: the driver's port hangs up, and is gone until ``replug``."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hang_up()

    async def close(self) -> None:
        """Cut the line for good."""
        await self.cut()
        self._board.close()

    def _hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
            self._link.unlink(missing_ok=True)

    async def _from_driver(self, master: int) -> None:
        board = self._board.fileno()
        pace = _Pace(self._baudrate, lambda size: os.read(master, size), master)
        while True:
            try:
                data = await pace.take()
            except OSError:  # EIO: nobody has the port open
                await asyncio.sleep(_POLL_SECONDS)
                continue
            self.bytes_down += len(data)
            data, late = self._down(data)
            await pace.wait(late)
            with suppress(OSError):  # the other direction sees the board's end
                await _write(board, data)

    async def _from_board(self, master: int) -> None:
        pace = _Pace(self._baudrate, self._board.recv, self._board.fileno())
        with suppress(OSError):
            while data := await pace.take():
                self.bytes_up += len(data)
                data, late = self._up(data)
                await pace.wait(late)
                if _is_open(master):
                    await _write(master, data, lambda: _is_open(master))
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
                await asyncio.wait([task])
        self._hang_up()


class _Pace:
    """Takes bytes from a file descriptor no faster than a line of this baud rate carries them."""

    def __init__(self, baudrate: int | None, read: Callable[[int], bytes], fd: int) -> None:
        self._rate = baudrate / BITS_PER_BYTE if baudrate else math.inf
        self._size = max(1, int(self._rate * _SLICE_SECONDS)) if baudrate else _CHUNK_BYTES
        self._read, self._fd = read, fd
        self._loop = asyncio.get_running_loop()
        #: when the line has carried everything taken so far
        self._free = 0.0

    async def take(self) -> bytes:
        """The next bytes, when their last bit would have arrived; none at the end."""
        waited = False
        while True:
            try:
                data = self._read(self._size)
                break
            except BlockingIOError:
                waited = True
                await _ready(self._loop.add_reader, self._loop.remove_reader, self._fd)
        now = self._loop.time()
        begin = max(self._free, now if waited else now - _CATCH_UP_SECONDS)
        self._free = begin + len(data) / self._rate
        await self.wait(0)
        return data

    async def wait(self, late: float) -> None:
        """Let ``late`` seconds more pass on the line."""
        self._free += late
        if (pause := self._free - self._loop.time()) > 0:
            await asyncio.sleep(pause)


def _is_open(master: int) -> bool:
    """Whether somebody has the pseudo-terminal of this master open."""
    poll = select.poll()
    poll.register(master, 0)
    return not poll.poll(0)


async def _write(fd: int, data: bytes, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Write everything, unless ``goes_on`` says that nobody reads."""
    loop = asyncio.get_running_loop()
    while data and goes_on():
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await _ready(loop.add_writer, loop.remove_writer, fd)


async def _ready(add: Callable[..., object], remove: Callable[[int], object], fd: int) -> None:
    """Wait until the event loop reports ``fd``."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, _settle, done)
    try:
        await done
    finally:
        remove(fd)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
