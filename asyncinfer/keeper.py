"""Opens devices, opens them again when they fail, and closes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import anyio

from asyncinfer.burst import Burst
from asyncinfer.device import Device, DeviceState, names
from asyncinfer.driver import Driver, SupportsCalibrate
from asyncinfer.errors import ClosedError, ConfigError, DeviceError, DeviceTimeout
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
        devices: Sequence[Device],
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
    ) -> None:
        self.devices = list(devices)
        self.pool: Pool
        #: takes all its tasks from a device, and returns what then still runs there
        self.take_back: Callable[[Device], list[Burst]]
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._timeouts = timeouts
        self._random = random.Random(42)
        self._recovering: dict[Device, asyncio.Task[None]] = {}

    # ---- all of them

    async def open_all(self) -> None:
        """Open all devices at once. One that fails is tried again later, if another is up.

        Raises the ``DeviceError`` if all fail, and at once what is no ``DeviceError``.
        """
        errors: dict[Device, Exception] = {}
        async with anyio.create_task_group() as group:

            async def attempt(device: Device) -> None:
                try:
                    await self.open(device)
                except Exception as error:
                    errors[device] = error
                    if not isinstance(error, DeviceError):
                        group.cancel_scope.cancel()

            for device in self.devices:
                group.start_soon(attempt, device)
        fatal = [error for error in errors.values() if not isinstance(error, DeviceError)]
        if fatal:
            raise fatal[0]
        if errors and len(errors) == len(self.devices):
            first, *others = errors.values()
            for other in others:
                first.add_note(str(other))
            raise first
        for device in self.devices:
            self.pool.roster.join(device)
        self.pool.wake()
        for device, error in errors.items():
            self._recorder.device_event("device.lost", device.name, error)
            self.recover(device, [])

    async def add(self, driver: Driver[Any, Any]) -> None:
        """Open one more device and let it take part. Raises what opening it raises."""
        position = max((device.position for device in self.devices), default=-1) + 1
        device = Device(driver, position)
        if any(other.name == device.name for other in self.devices):
            raise ConfigError(f"there is a device {device.name!r} already: names must differ")
        self.devices.append(device)
        try:
            await self.open(device)
        except BaseException:
            self.devices.remove(device)
            await self.close_driver(device, [])
            raise
        self.pool.roster.join(device)
        self.pool.wake()

    async def remove(self, name: str, *, drain: bool) -> None:
        """Take a device out: after what it runs if ``drain``, else its tasks go elsewhere."""
        device = next((d for d in self.pool.roster.members if d.name == name), None)
        if device is None:
            raise ConfigError(f"no device {name!r} to remove: there are {names(self.devices)}")
        drained = drain and (device.up or device.state is DeviceState.DRAINING)
        device.become(DeviceState.DRAINING, self._clock())
        self._recorder.device_event("device.draining", name)
        self.pool.reclaim()
        while drained and device.bursts:
            await asyncio.wait([b.runner for b in device.bursts if b.runner is not None])
        if device not in self.pool.roster.members:  # another call of this has removed it meanwhile
            return
        bursts = self.take_back(device)
        self.pool.roster.leave(device)
        await self.close([device], bursts)
        self.devices.remove(device)

    async def close_all(self) -> None:
        """Close every device for good."""
        await self.close(self.devices)

    # ---- one

    async def open(self, device: Device) -> None:
        """Open and calibrate; raises what the driver raises, a timeout as ``DeviceTimeout``."""
        device.become(DeviceState.OPENING, self._clock())
        self._recorder.device_event("device.opening", device.name)
        seconds = self._timeouts.open
        scope = anyio.move_on_after(seconds)
        try:
            with scope:
                await _call(device, "open")
                device.opened()
                await _calibrate(device)
        except OSError as error:
            raise DeviceError(device.name, f"did not open: {error}") from error
        if scope.cancelled_caught:
            raise DeviceTimeout(device.name, f"did not open within {seconds} s")
        if device.state is DeviceState.REMOVED:
            raise ClosedError(f"the dispatcher was closed while device {device.name!r} was opening")
        device.become(DeviceState.READY, self._clock())
        self._recorder.device_event("device.ready", device.name)
        self.pool.wake()

    def recover(self, device: Device, bursts: list[Burst]) -> None:
        """Close a failed device and open it again, with growing pauses, in the background."""
        leaving = device.state in (DeviceState.DRAINING, DeviceState.REMOVED)
        if leaving or device in self._recovering:
            return
        device.become(DeviceState.LOST, self._clock())
        device.failures += 1
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
            try:
                await self.open(device)
            except Exception as error:
                device.failures += 1
                self._recorder.device_event("device.lost", device.name, error)
                await self.close_driver(device, [])
            else:
                return

    def _pause(self, failures: int) -> float:
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 20))
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
        closing = self._loop.create_task(_closed(device), name=f"asyncinfer close {device.name}")
        seconds = self._timeouts.close
        try:  # a task of its own can be left behind, even one that cannot be cancelled
            with anyio.CancelScope(shield=True):
                await asyncio.wait([closing], timeout=seconds)
        finally:
            late = closing.cancel()
        if late:
            logger.warning("device %r did not close within %s s", device.name, seconds)
            await self._settle(device, [closing])

    async def _settle(self, device: Device, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for cancelled asyncio tasks to end, within the close timeout."""
        if not tasks:
            return
        with anyio.CancelScope(shield=True):
            await asyncio.wait(tasks, timeout=self._timeouts.close)
        left = sum(not task.done() for task in tasks)
        if left:
            logger.warning("device %r is wedged: %d calls left behind", device.name, left)


def _call(device: Device, method: str) -> Coroutine[Any, Any, None]:
    function = getattr(device.driver, method, None)
    return _nothing() if function is None else function()


async def _calibrate(device: Device) -> None:
    if isinstance(device.driver, SupportsCalibrate):
        line = await device.driver.calibrate()
        if line is not None:
            device.calibrate(line)


async def _closed(device: Device) -> None:
    try:
        await _call(device, "close")
    except Exception as error:
        logger.warning("device %r did not close cleanly: %r", device.name, error)


async def _nothing() -> None:
    """Stand in for a method the driver does not have."""
