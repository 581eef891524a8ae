"""An endless source that may be faster than the devices: let it wait, or skip what is too late.

A camera gives 200 frames a second here, the two devices together manage 67. The dispatcher reads
a source no further ahead than ``queue_size`` and ``window`` allow; what happens to the frames
meanwhile is the source's choice:

- ``recording`` waits, as a file would: every frame comes, at the pace of the devices;
- ``Live`` goes on filming: who asks gets the newest frame, those in between are skipped.

    python examples/camera.py [--frames 50]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from types import TracebackType

from asyncinfer import Dispatcher, Driver
from asyncinfer.testing import SimulatedDriver

FRAMES_PER_SECOND = 200


@dataclass(frozen=True)
class Frame:
    """A picture (which is left out here)."""

    number: int
    taken: float


async def recording() -> AsyncIterator[Frame]:
    """Endless; the next frame is read when it is asked for."""
    for number in itertools.count():
        await asyncio.sleep(1 / FRAMES_PER_SECOND)
        yield Frame(number, time.monotonic())


class Live(AsyncIterator[Frame]):
    """Films all the time, in a task of its own; iterating over it gives the newest frame."""

    async def __aenter__(self) -> Live:
        self._newest = asyncio.Queue[Frame](maxsize=1)
        self._filming = asyncio.create_task(self._film())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._filming.cancel()

    async def _film(self) -> None:
        async for frame in recording():
            if self._newest.full():
                self._newest.get_nowait()  # nobody asked in time: skip it
            self._newest.put_nowait(frame)

    def __aiter__(self) -> Live:
        return self

    async def __anext__(self) -> Frame:
        return await self._newest.get()


def devices() -> list[Driver[Frame, Frame]]:
    """Two unequal ones: 50 and 17 frames a second."""
    return [SimulatedDriver("fast", 0.020), SimulatedDriver("slow", 0.060)]


async def watch(title: str, camera: AsyncIterable[Frame], count: int) -> list[Frame]:
    """Take ``count`` frames in order, then stop the stream; the camera would go on."""
    frames, ages = list[Frame](), list[float]()
    # both small: what is read ahead gets old while it waits
    async with Dispatcher(devices(), window=4, queue_size=1) as dispatcher:
        async with dispatcher.stream(camera) as stream:
            async for frame in stream:
                frames.append(frame)
                ages.append(time.monotonic() - frame.taken)
                if len(frames) == count:
                    break
        rate = dispatcher.stats().throughput
    skipped = frames[-1].number + 1 - len(frames)
    age = f"{statistics.median(ages) * 1000:.0f} ms from reading to result"
    print(f"{title:9} {rate:.0f} frames/s, {skipped} skipped, {age}")
    return frames


async def main() -> None:
    """Show both choices."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=50)
    count = parser.parse_args().frames
    await watch("recording", recording(), count)
    async with Live() as camera:
        await watch("live", camera, count)


if __name__ == "__main__":
    asyncio.run(main())
