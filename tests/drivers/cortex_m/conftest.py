"""A board in memory, and lines of different quality between it and the host."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncinfer.testing import run_virtual
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.driver import CortexM4Driver
from asyncinfer_drivers.cortex_m.peer import FirmwarePeer
from asyncinfer_drivers.cortex_m.specs import BoardSpec, TensorSpec
from asyncinfer_drivers.cortex_m.timing import Timing

sys.path.insert(0, str(Path(__file__).parent))  # for board_lines

#: the link's times for tests in real time, in seconds
FAST = Timing(hello=0.01, open=0.5, slack=0.01, first=0.02, longest=0.05, busy=0.001, timeouts=5)

INPUT = TensorSpec("pixels", Datatype.INT8, (2, 2, 1), 0.5, -3)
OUTPUT = TensorSpec("scores", Datatype.INT8, (3,), 0.25, 10)
SPEC = BoardSpec(
    "stm32f405",
    "asyncinfer 1",
    "tiny",
    (INPUT,),
    (OUTPUT,),
    frames_in_flight=3,
    max_samples=4,
    boot_counter=7,
    receive_buffer=64,
    tick_hz=1000,
)


def compute(sample: bytes) -> bytes:
    """Sum, difference and product of things in the sample: no two samples look alike."""
    a, b, c, d = (value - 256 * (value > 127) for value in sample)
    return bytes((number % 256) for number in (a + b + c + d, a - d, 3 * b + 7 * c))


class Line:
    """One end of a line that is not perfect."""

    def __init__(self, end: Any, change: Callable[[bytes], list[bytes]], delay: float) -> None:
        self._end = end
        self._change = change
        self._delay = delay

    def write(self, data: bytes) -> None:
        for part in self._change(data):
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._end.write, part)
            else:
                self._end.write(part)

    def abort(self) -> None:
        self._end.abort()


def lossy(seed: int, share: float) -> Callable[[bytes], list[bytes]]:
    chance = random.Random(seed)
    return lambda data: [] if chance.random() < share else [data]


def flipped(seed: int, one_in: int) -> Callable[[bytes], list[bytes]]:
    """Of ``one_in`` bytes one is flipped, dropped or doubled."""
    chance = random.Random(seed)

    def change(byte: int) -> bytes:
        if chance.randrange(one_in):
            return bytes([byte])
        return chance.choice([bytes([byte ^ 1 << chance.randrange(8)]), b"", bytes([byte, byte])])

    return lambda data: [b"".join(map(change, data))]


def whole(data: bytes) -> list[bytes]:
    return [data]


#: what a line does to what is written, and its delay in seconds
LINES: dict[str, Callable[[], tuple[Callable[[bytes], list[bytes]], float]]] = {
    "perfect": lambda: (whole, 0.0),
    "bytewise": lambda: (lambda data: [bytes([byte]) for byte in data], 0.0),
    "lossy": lambda: (lossy(42, 0.2), 0.0),
    "damaging": lambda: (flipped(42, 200), 0.0),
    "delayed": lambda: (whole, 0.003),
    "doubling": lambda: (lambda data: [data, data], 0.0),
}


def make_peer(line: str = "perfect", **options: Any) -> FirmwarePeer:
    change, delay = LINES[line]()
    options.setdefault("spec", SPEC)
    options.setdefault("compute", compute)
    return FirmwarePeer(wrap=lambda end: Line(end, change, delay), **options)


@pytest.fixture
def peer() -> FirmwarePeer:
    """A board at a perfect line."""
    return make_peer()


@pytest.fixture
def board() -> Callable[..., FirmwarePeer]:
    """Makes a board: the name of its line, then ``FirmwarePeer``'s arguments."""
    return make_peer


@pytest.fixture
def fast() -> Timing:
    """The link's times for tests in real time."""
    return FAST


@pytest.fixture
def virtual() -> Callable[..., Any]:
    """Run a coroutine on the virtual clock; it may not leave a task or a timer behind."""

    async def checked(coro: Any) -> Any:
        unseen: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: unseen.append(what))
        async with asyncio.timeout(1e5):
            result = await coro
        await asyncio.sleep(1.0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
        assert unseen == []
        return result

    return lambda coro: run_virtual(checked(coro))


@pytest.fixture
def answer() -> Callable[..., Any]:
    """What the board should answer, by a computation that does not use the driver's."""

    def expected(item: Any) -> list[float]:
        flat = [value for row in item for value in row]
        numbers = [max(-128, min(127, round(value / INPUT.scale) - 3)) for value in flat]
        raw = compute(bytes(number % 256 for number in numbers))
        return [((n - 256 * (n > 127)) - OUTPUT.zero_point) * OUTPUT.scale for n in raw]

    return expected


@pytest.fixture
def driver() -> Callable[..., CortexM4Driver]:
    """Makes a driver for a board."""
    return lambda peer, **options: CortexM4Driver(peer.connect, **options)
