"""Opens devices, opens them again when they fail, and closes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import anyio

from asyncinfer.device import Burst, Device, DeviceState
from asyncinfer.driver import SupportsCalibrate
from asyncinfer.errors import DeviceError, DeviceTimeout
from asyncinfer.pool import Pool
from asyncinfer.recorder import Recorder, logger
from asyncinfer.timeouts import Timeouts

__all__ = ("Keeper",)

#: pause before the first attempt to open a failed device again, in seconds; doubled each time
FIRST_PAUSE = 0.05
#: longest pause, in seconds
LONGEST_PAUSE = 30.0


class Keeper:
    """Takes devices through their states; every slow step of that happens here."""

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
    ) -> None:
        self.pool: Pool
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._timeouts = timeouts
        self._random = random.Random(42)
        self._recovering: dict[Device, asyncio.Task[None]] = {}

    async def open(self, device: Device) -> None:
        """Open and calibrate; raises what the driver raises, a timeout as ``DeviceTimeout``."""
        device.become(DeviceState.OPENING, self._clock())
        self._recorder.device_event("device.opening", device.name)
        seconds = self._timeouts.open
        try:
            with anyio.fail_after(seconds):
                await _call(device, "open")
                if isinstance(device.driver, SupportsCalibrate):
                    line = await device.driver.calibrate()
                    if line is not None:
                        device.estimator.start_from(line)
        except TimeoutError as error:
            text = f"did not open within {seconds} s"
            raise DeviceTimeout(device.name, text) from error
        except OSError as error:
            raise DeviceError(device.name, f"did not open: {error}") from error
        device.become(DeviceState.READY, self._clock())
        self._recorder.device_event("device.ready", device.name)
        self.pool.wake()

    def recover(self, device: Device, bursts: list[Burst]) -> None:
        """Close a failed device and open it again, with growing pauses, in the background."""
        leaving = device.state in (DeviceState.DRAINING, DeviceState.REMOVED)
        if leaving or device in self._recovering:
            return
        device.become(DeviceState.LOST, self._clock())
        task = self._loop.create_task(
            self._recover(device, bursts), name=f"asyncinfer recover {device.name}"
        )
        self._recovering[device] = task
        task.add_done_callback(lambda _: self._recovering.pop(device, None))

    async def _recover(self, device: Device, bursts: list[Burst]) -> None:
        await self.close_driver(device, bursts)
        while True:
            device.become(DeviceState.BACKING_OFF, self._clock())
            self._recorder.device_event("device.backing_off", device.name)
            await asyncio.sleep(self._pause(device.failures))
            device.failures += 1
            try:
                await self.open(device)
            except Exception as error:
                self._recorder.device_event("device.lost", device.name, error)
                await self.close_driver(device, [])
            else:
                return

    def _pause(self, failures: int) -> float:
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 20))
        return pause * self._random.uniform(0.5, 1.0)

    async def close(self, devices: Iterable[Device], bursts: Sequence[Burst] = ()) -> None:
        """Close devices for good, all at once, and whatever else still runs on them.

        Returns within the close timeout for each step: running calls, recovery, the driver itself.
        """
        async with anyio.create_task_group() as group:
            for device in list(devices):
                group.start_soon(self._close, device, [*bursts, *device.bursts])

    async def _close(self, device: Device, bursts: list[Burst]) -> None:
        device.become(DeviceState.REMOVED, self._clock())
        recovering = self._recovering.pop(device, None)
        if recovering is not None:
            recovering.cancel()
            await self._settle(device, [recovering])
        await self.close_driver(device, bursts)
        self._recorder.device_event("device.removed", device.name)

    async def close_driver(self, device: Device, bursts: list[Burst]) -> None:
        """End what the device runs, then close its driver: shielded, and within the timeout."""
        runners = [burst.runner for burst in bursts if burst.runner is not None]
        for runner in runners:
            runner.cancel()
        await self._settle(device, runners)
        seconds = self._timeouts.close
        with anyio.move_on_after(seconds, shield=True) as scope:
            try:
                await _call(device, "close")
            except Exception as error:
                logger.warning("device %r did not close cleanly: %r", device.name, error)
        if scope.cancelled_caught:
            logger.warning("device %r did not close within %s s", device.name, seconds)

    async def _settle(self, device: Device, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for cancelled asyncio tasks to end, within the close timeout."""
        if not tasks:
            return
        with anyio.CancelScope(shield=True):
            _, left = await asyncio.wait(tasks, timeout=self._timeouts.close)
        if left:
            logger.warning("device %r is wedged: %d calls left behind", device.name, len(left))


def _call(device: Device, method: str) -> Coroutine[Any, Any, None]:
    function = getattr(device.driver, method, None)
    return _nothing() if function is None else function()


async def _nothing() -> None:
    """Stand in for a method the driver does not have."""
