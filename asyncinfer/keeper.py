"""Takes devices through their lives: opened, opened again when they fail, and closed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import anyio

from asyncinfer.burst import Burst
from asyncinfer.device import Device, names
from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceError
from asyncinfer.events import EventKind
from asyncinfer.lifecycle import UP, DeviceState
from asyncinfer.opening import Opening
from asyncinfer.pool import Pool, nothing
from asyncinfer.recorder import Recorder, logger
from asyncinfer.timeouts import Timeouts
from asyncinfer.watch import Watch

__all__ = ("Keeper",)

#: seconds a device is held off at most while no device is up
ALONE = 1.0
#: a device is not opened again while calls of so many earlier openings are left behind
LEFT_BEHIND = 2


class Runner(Protocol):
    """What an executor does when a device fails or leaves."""

    def take_back(self, device: Device) -> list[Burst]:
        """Take all its tasks from a device; return the calls that were cancelled."""
        ...

    def fail(self, device: Device, error: DeviceError) -> None:
        """Treat the device as failed."""
        ...


class Keeper:
    """Decides what becomes of devices; every slow step of their lives is begun here."""

    pool: Pool
    _runner: Runner
    _watch: Watch

    def __init__(
        self,
        devices: Sequence[Device],
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
    ) -> None:
        self.devices = list(devices)
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._timeouts = timeouts
        self._opening = Opening(recorder, clock, loop, timeouts)
        self._recovering: dict[Device, asyncio.Task[None]] = {}
        self._up = 0
        self._none_up = asyncio.Event()
        for device in devices:
            device.told = self._told

    def serve(self, pool: Pool, runner: Runner) -> None:
        """Look after the devices of ``pool``."""
        self.pool, self._runner = pool, runner
        self._watch = Watch(pool.roster, self._clock, self._loop, runner.fail)
        pool.handed_out = self._watch.arm

    def _told(
        self, device: Device, before: DeviceState | None, error: BaseException | None
    ) -> None:
        """A device has changed its state."""
        self._up += device.up - (before in UP)
        self._none_up.clear() if self._up else self._none_up.set()
        state = DeviceState.READY if device.state is DeviceState.BUSY else device.state
        kind = cast("EventKind", f"device.{state}")
        facts = {"before": before or "", "reason": device.reason}
        self._recorder.device_event(kind, device.name, error, **facts)

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
            self.recover(device, error)

    async def add(self, driver: Driver[Any, Any]) -> None:
        """Open one more device and let it take part. Raises what opening it raises."""
        position = max((device.position for device in self.devices), default=-1) + 1
        device = Device(driver, position)
        device.told = self._told
        if any(other.name == device.name for other in self.devices):
            raise ConfigError(f"there is a device {device.name!r} already: names must differ")
        self.devices.append(device)
        try:
            await self.open(device)
        except BaseException as error:
            self.devices.remove(device)
            await self._close(device, f"it could not be added: {error}")
            raise
        self.pool.roster.join(device)
        self.pool.wake()

    async def remove(self, name: str, *, drain: bool) -> None:
        """Take a device out: after what it runs if ``drain``, else its tasks go elsewhere."""
        device = next((d for d in self.pool.roster.members if d.name == name), None)
        if device is None:
            raise ConfigError(f"no device {name!r} to remove: there are {names(self.devices)}")
        drained = drain and (device.up or device.state is DeviceState.DRAINING)
        if device.state is not DeviceState.DRAINING:
            device.become(DeviceState.DRAINING, self._clock(), "it is being removed")
        self.pool.reclaim()
        self.pool.wake()  # devices that rested because of this one
        if drained:
            await self._opening.finish(device)
        if device not in self.pool.roster.members:  # another call of this has removed it meanwhile
            return
        self._leave(device, self._runner.take_back(device))
        self.pool.roster.leave(device)
        await self._close(device, "it is being removed")
        self.devices.remove(device)

    async def close_all(self) -> None:
        """Close every device for good."""
        self.pool.handed_out = nothing
        self._watch.stop()
        async with anyio.create_task_group() as group:
            for device in list(self.devices):
                group.start_soon(self._close, device, "the dispatcher is closing")
        self._watch.stop()  # again: a device that was being added may have come up meanwhile

    # ---- one

    async def open(self, device: Device) -> None:
        """Open it and let it take tasks. Raises what the driver raises, or ``DeviceTimeout``."""
        await self._opening.open(device)
        self._watch.reset()
        self.pool.wake()

    def recover(self, device: Device, error: Exception, bursts: Iterable[Burst] = ()) -> None:
        """A device failed: close it and open it again, with growing pauses, in the background."""
        self._leave(device, bursts)
        if device.state in (DeviceState.DRAINING, DeviceState.REMOVED):
            logger.warning("%s (it is being closed anyway)", error)
            return
        if device in self._recovering:
            return
        if device.up:
            device.breaker.lost(device.answered_at)
        else:
            device.breaker.not_opened()
        device.become(DeviceState.LOST, self._clock(), error=error)
        task = self._loop.create_task(
            self._recover(device), name=f"asyncinfer recover {device.name}"
        )
        self._recovering[device] = task
        task.add_done_callback(lambda _: self._recovering.pop(device, None))

    def _leave(self, device: Device, bursts: Iterable[Burst]) -> None:
        """Its calls were cancelled, and belong to an opening of it that is over."""
        self._watch.leave(device)
        for burst in bursts:
            if burst.runner is not None:
                device.leftovers.add(burst.runner, burst.generation)

    async def _recover(self, device: Device) -> None:
        await self._opening.close(device)
        while True:
            await self._hold_off(device)
            try:
                await self.open(device)
            except Exception as error:
                if device.state is not DeviceState.OPENING:
                    return
                device.breaker.not_opened()
                device.become(DeviceState.LOST, self._clock(), error=error)
                await self._opening.close(device)
            else:
                return

    async def _hold_off(self, device: Device) -> None:
        """Pause, for ``ALONE`` at most while no device is up; wait for calls left behind."""
        pause, left = device.breaker.pause(), device.leftovers
        device.next_attempt = self._clock() + pause
        device.become(DeviceState.BACKING_OFF, self._clock(), device.reason)
        await asyncio.sleep(min(pause, ALONE))
        if pause > ALONE:
            with anyio.move_on_after(pause - ALONE):
                await self._none_up.wait()
        if left.generations >= LEFT_BEHIND:
            device.next_attempt = math.inf
            device.reason = f"waiting for one of {left.wedged} calls left behind to end"
            await left.fewer_than(LEFT_BEHIND)

    async def _close(self, device: Device, reason: str) -> None:
        """Close a device for good, and whatever still runs on it, within the close timeout."""
        if device.state is DeviceState.REMOVED:
            return
        if device.state is not DeviceState.DRAINING:
            device.become(DeviceState.DRAINING, self._clock(), reason)
        recovering = self._recovering.pop(device, None)
        if recovering is not None:
            recovering.cancel()
            device.leftovers.add(recovering, device.generation)
        self._opening.give_up(device)
        self._opening.end_calls(device)
        self._leave(device, ())
        with anyio.CancelScope(shield=True):
            await self._opening.close(device)
        if device.state is DeviceState.DRAINING:
            device.become(DeviceState.REMOVED, self._clock(), reason)
