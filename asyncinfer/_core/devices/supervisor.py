"""Opens devices, opens them again when they fail, and closes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import anyio

from asyncinfer._core.devices.connecting import Connecting
from asyncinfer._core.devices.device import Burst, Device, names
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.watchdog import Watchdog
from asyncinfer._core.tasks.recorder import Recorder, logger
from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceError
from asyncinfer.options import Timeouts
from asyncinfer.stats import DeviceState

__all__ = ("Supervisor",)

#: longest that a failed device backs off while no device is up, in seconds
LONGEST_PAUSE_ALONE = 1.0
#: a device is not opened again while calls of this many earlier openings are left behind
MOST_LEFT_BEHIND = 2


class Supervisor:
    """Decides what becomes of each device, and starts everything slow in its life.

    The supervisor knows nothing of tasks. When a device fails or is removed, it calls
    ``take_back``, which gives the device's tasks back and returns the bursts that were cancelled.
    ``wake`` has tasks assigned anew.
    """

    def __init__(
        self,
        roster: Roster,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        *,
        take_back: Callable[[Device, DeviceError | None], list[Burst]],
        wake: Callable[[], None],
    ) -> None:
        self._roster = roster
        self._clock = clock
        self._loop = loop
        self._timeouts = timeouts
        self._take_back = take_back
        self._wake = wake
        self._connecting = Connecting(recorder, clock, loop, timeouts)
        #: finds devices that fall silent
        self.watchdog = Watchdog(roster, clock, loop, self.device_failed)
        self._recovering: dict[Device, asyncio.Task[None]] = {}

    # ---- which devices there are

    async def open_all(self, drivers: Iterable[Driver[Any, Any]]) -> None:
        """Open all devices at once. Those that fail are opened again later, if another is up.

        Raises the first ``DeviceError`` if all fail. Any other error is raised at once, and the
        opening of the others is cancelled.
        """
        devices = [self._roster.new(driver) for driver in drivers]
        errors: dict[Device, Exception] = {}
        async with anyio.create_task_group() as group:

            async def attempt(device: Device) -> None:
                try:
                    await self._open(device)
                except Exception as error:
                    errors[device] = error
                    if not isinstance(error, DeviceError):
                        group.cancel_scope.cancel()

            for device in devices:
                group.start_soon(attempt, device)
        fatal = [error for error in errors.values() if not isinstance(error, DeviceError)]
        if fatal:
            raise fatal[0]
        if errors and len(errors) == len(devices):
            first, *others = errors.values()
            for other in others:
                first.add_note(str(other))
            raise first
        for device in devices:
            self._roster.join(device)
        self._wake()
        for device, error in errors.items():
            self._recover(device, error)

    async def add(self, driver: Driver[Any, Any]) -> None:
        """Open one more device and let it take part. Raises what opening the driver raises."""
        device = self._roster.new(driver)
        try:
            await self._open(device)
        except BaseException as error:
            self._roster.forget(device)
            await self._close(device, f"it could not be added: {error}")
            raise
        self._roster.join(device)
        self._wake()

    async def remove(self, name: str, *, drain: bool) -> None:
        """Close a device and forget it.

        With ``drain`` it finishes what it runs before; without, its tasks go to other devices.
        Raises ``ConfigError`` if there is no such device.
        """
        roster = self._roster
        device = next((d for d in roster.members if d.name == name), None)
        if device is None:
            raise ConfigError(f"no device {name!r} to remove: there are {names(roster.devices)}")
        drained = drain and (device.up or device.state is DeviceState.DRAINING)
        if device.state is not DeviceState.DRAINING:
            device.become(DeviceState.DRAINING, self._clock(), "it is being removed")
        roster.reclaim()
        self._wake()  # devices may have rested because this one was faster
        if drained:
            await self._connecting.drain(device)
        if device not in roster.members:  # another call of ``remove`` has removed it meanwhile
            return
        self._end_opening(device, self._take_back(device, None))
        roster.leave(device)
        await self._close(device, "it is being removed")
        roster.forget(device)

    async def close_all(self) -> None:
        """Close every device for good."""
        self.watchdog.close()
        async with anyio.create_task_group() as group:
            for device in list(self._roster.devices):
                group.start_soon(self._close, device, "the dispatcher is closing")

    # ---- the life of one device

    async def _open(self, device: Device) -> None:
        """Open a device, so that it is up. Raises what the driver raises, or ``DeviceTimeout``."""
        await self._connecting.open(device)
        self.watchdog.arm_anew()
        self._wake()

    def device_failed(self, device: Device, error: DeviceError) -> None:
        """Give the tasks of a failed device to the others, and open the device again later."""
        device.count_error()
        self._end_opening(device, self._take_back(device, error))
        self._recover(device, error)

    def _recover(self, device: Device, error: Exception) -> None:
        """Close a failed device and open it again, with growing pauses, in the background."""
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
            self._reopen(device), name=f"asyncinfer recover {device.name}"
        )
        self._recovering[device] = task
        task.add_done_callback(lambda _: self._recovering.pop(device, None))

    def _end_opening(self, device: Device, bursts: Iterable[Burst]) -> None:
        """This opening of the device is over: its cancelled ``bursts`` and its probe are to end."""
        self.watchdog.stop_probe(device)
        for burst in bursts:
            if burst.runner is not None:
                device.leftovers.expect_end(burst.runner, burst.generation)

    async def _reopen(self, device: Device) -> None:
        await self._connecting.close(device)
        while True:
            await self._back_off(device)
            try:
                await self._open(device)
            except Exception as error:
                if device.state is not DeviceState.OPENING:
                    return
                device.breaker.not_opened()
                device.become(DeviceState.LOST, self._clock(), error=error)
                await self._connecting.close(device)
            else:
                return

    async def _back_off(self, device: Device) -> None:
        """Wait until the device may be opened again.

        That is after a pause, of ``LONGEST_PAUSE_ALONE`` at most while no device is up; and not
        while calls of ``MOST_LEFT_BEHIND`` earlier openings still go on.
        """
        pause, left = device.breaker.pause(), device.leftovers
        device.back_off(self._clock(), pause)
        await asyncio.sleep(min(pause, LONGEST_PAUSE_ALONE))
        if pause > LONGEST_PAUSE_ALONE:
            with anyio.move_on_after(pause - LONGEST_PAUSE_ALONE):
                await self._roster.none_up.wait()
        if left.generations >= MOST_LEFT_BEHIND:
            device.wait_for_leftovers()
            await left.fewer_than(MOST_LEFT_BEHIND)

    async def _close(self, device: Device, reason: str) -> None:
        """Close a device for good, and cancel what still runs on it, within the close timeout."""
        if device.state is DeviceState.REMOVED:
            return
        if device.state is not DeviceState.DRAINING:
            device.become(DeviceState.DRAINING, self._clock(), reason)
        recovering = self._recovering.pop(device, None)
        if recovering is not None:
            recovering.cancel()
            device.leftovers.expect_end(recovering, device.generation)
        self._connecting.cancel_opening(device)
        for burst in device.bursts:
            burst.cancel()
        self._end_opening(device, device.bursts)
        with anyio.CancelScope(shield=True):
            await self._connecting.close(device)
        if device.state is DeviceState.DRAINING:
            device.become(DeviceState.REMOVED, self._clock(), reason)
