"""Streams of inferences over the line of a Cortex-M4, with so many of them in flight."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

from asyncinfer._optional import run_async
from asyncinfer.bench.record import Run
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig
from asyncinfer.dispatcher import Dispatcher
from asyncinfer_drivers.cortex_m import frames

if TYPE_CHECKING:
    from asyncinfer_drivers.cortex_m.driver import CortexM4Driver

__all__ = ("EMULATED", "Line", "line_figures", "request_bytes", "stream")

#: the registered name of the driver that brings its own board in QEMU
EMULATED = "cortex_m4_emulated"
#: a start bit, eight of data, a stop bit
BITS_PER_BYTE = 10
#: inferences a second that nothing goes beyond, to tell how many fill a time
_FASTEST = 400
#: tasks before those that count
_WARM_UP = 8


@dataclass(frozen=True)
class Line:
    """One board at the end of one line, used one way."""

    device: DeviceConfig
    in_flight: int

    @property
    def baudrate(self) -> float:
        """Bits a second; ``nan`` if nothing paces the line."""
        default = None if self.device.driver == EMULATED else 921_600
        return float(self.device.options.get("baudrate", default) or math.nan)

    @property
    def name(self) -> str:
        """What is measured."""
        baud = "not paced" if math.isnan(self.baudrate) else f"{self.baudrate:.0f} baud"
        return f"{self.device.name}: {baud}, {self.in_flight} in flight"

    def driver(self) -> CortexM4Driver:
        """One sample a request, so many requests in flight."""
        ways = {"max_batch": 1, "concurrency": self.in_flight}
        device = replace(self.device, options={**self.device.options, **ways})
        return cast("CortexM4Driver", device.build())

    def tasks(self, size: int, seconds: float) -> int:
        """As many as take about that long."""
        line = self.baudrate / BITS_PER_BYTE / size
        return max(10, int(seconds * min(_FASTEST, line if line > 0 else _FASTEST)))


def stream(line: Line, seconds: float, context: Context) -> Run:
    """``Dispatcher.stream`` over that line for about so long."""
    return run_async(_stream(line, seconds, context))


async def _stream(line: Line, seconds: float, context: Context) -> Run:
    driver = line.driver()
    async with Dispatcher([driver]) as dispatcher:
        assert driver.board is not None  # noqa: S101  # it is open
        spec = driver.board.inputs[0]
        size = request_bytes(spec.size)
        tasks, x = line.tasks(size, seconds), _filled(spec.shape)
        async for _ in dispatcher.stream([x] * _WARM_UP):
            pass
        start = time.perf_counter()
        async for _ in dispatcher.stream(repeat(x, tasks)):
            pass
        took = time.perf_counter() - start
    return Run(
        suite="link",
        case=line.name,
        policy="stream",
        devices=(line.device.name,),
        tasks=tasks,
        seed=context.seed,
        makespan=took,
        throughput=tasks / took,
        figures={**line_figures(tasks / took, size, line.baudrate), "in_flight": line.in_flight},
    )


def line_figures(rate: float, size: int, baudrate: float) -> dict[str, Any]:
    """What a rate of inferences means in bytes, and of the line's."""
    share = rate * size * BITS_PER_BYTE / baudrate
    return {
        "baudrate": baudrate,
        "bytes_per_request": size,
        "bytes_per_second": rate * size,
        "line_share": share,
    }


def request_bytes(sample: int) -> int:
    """What a request for one sample of so many bytes is on the wire."""
    return len(frames.encode(frames.Infer(1, 1, bytes([1]) * sample)))


def _filled(shape: Sequence[int]) -> Any:
    """Nested lists of that shape, of a grey."""
    return [_filled(shape[1:]) for _ in range(shape[0])] if shape else 0.5
