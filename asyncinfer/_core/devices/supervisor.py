"""Opens devices, opens them again when they fail, and closes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import anyio

from asyncinfer._core.devices.attributes import attributes_of
from asyncinfer._core.devices.connecting import Connecting
from asyncinfer._core.devices.device import Burst, Device, names
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.start import until_started
from asyncinfer._core.devices.watchdog import Watchdog
from asyncinfer._core.tasks.recorder import Recorder, logger
from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceError, DeviceTimeout
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
    ``wake`` has tasks assigned anew. ``overdue`` is shown each call that is long overdue.
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
        overdue: Callable[[Burst], None],
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
        self.watchdog = Watchdog(
            roster,
            clock,
            loop,
            self.device_failed,
            overdue=overdue,
            loses=timeouts.run == "auto",
        )
        #: the asyncio tasks that open devices, for the first time or again
        self._opening: dict[Device, asyncio.Task[None]] = {}
        #: the asyncio tasks that add and remove devices, which end even if the caller is gone
        self._changing: set[asyncio.Task[None]] = set()
        #: those that wait for a device to finish what it runs
        self._draining: set[asyncio.Task[None]] = set()
        #: those that close a device which is to be forgotten
        self._leaving: dict[Device, asyncio.Task[None]] = {}

    # ---- which devices there are

    async def open_all(self, drivers: Iterable[Driver[Any, Any]], *, wait_for_all: bool) -> None:
        """Open all devices at once, and return once one is up; the others join as they come up.

        With ``wait_for_all`` each is tried before it returns. Those that fail are opened again
        later. Raises the first ``DeviceError`` if all fail, and until it returns any other error at
        once.
        """
        devices = [self._roster.new(driver) for driver in drivers]
        openings: dict[asyncio.Task[None], Device] = {}
        for device in devices:
            self._roster.join(device)
            opening = self._in_background(device, self._open(device), "start")
            opening.add_done_callback(_seen)  # whoever waits may be cancelled in that moment
            openings[opening] = device
        errors = await until_started(openings, self._clock, for_all=wait_for_all)
        for device, error in errors.items():
            self._recover(device, error)
        for opening, device in openings.items():
            if not opening.done():
                opening.add_done_callback(partial(self._opened_late, device))

    def _opened_late(self, device: Device, opening: asyncio.Task[None]) -> None:
        """The first opening of a device has ended after work began."""
        error = None if opening.cancelled() else opening.exception()
        if error is not None and device.state is DeviceState.OPENING:  # else it is being closed
            self._recover(device, error)

    async def add(self, driver: Driver[Any, Any]) -> None:
        """Open one more device and let it take part. Raises what opening the driver raises.

        A device of that name that is being closed is waited for. If the caller is cancelled, the
        device is closed again.
        """
        await self._closed(attributes_of(driver).name)
        device = self._roster.new(driver)
        adding = self._in_any_case(self._add(device), f"add {device.name}")
        try:
            await _end_of(adding)
        except asyncio.CancelledError:
            if device not in self._leaving:
                adding.cancel()
            await asyncio.wait([adding])
            raise

    async def _add(self, device: Device) -> None:
        try:
            await self._open(device)
        except BaseException as error:
            await self._close_and_forget(device, f"it could not be added: {error}")
            raise
        self._roster.join(device)
        self._wake()

    async def _closed(self, name: str) -> None:
        """Wait until no device of this name is being closed to be forgotten."""
        while (device := self._roster.named(name)) is not None and device in self._leaving:
            await asyncio.wait([self._leaving[device]])

    def _in_any_case(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` in an asyncio task, so that it ends even if its caller is gone."""
        task = self._loop.create_task(work, name=f"asyncinfer {name}")
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        task.add_done_callback(_seen)
        return task

    async def remove(self, name: str, *, drain: bool) -> None:
        """Close a device and forget it.

        With ``drain`` it finishes what it runs before; without, its tasks go to other devices.
        Raises ``ConfigError`` if there is no such device. It is removed even if the caller is
        cancelled meanwhile.
        """
        roster = self._roster
        device = next((d for d in roster.members if d.name == name), None)
        if device is None:
            leaving = roster.named(name)
            if leaving is not None and leaving in self._leaving:
                await self._closed(name)
                return
            raise ConfigError(f"no device {name!r} to remove: there are {names(roster.devices)}")
        drained = drain and (device.up or device.state is DeviceState.DRAINING)
        if device.state is not DeviceState.DRAINING:
            device.become(DeviceState.DRAINING, self._clock(), "it is being removed")
        roster.reclaim()
        self._wake()  # devices may have rested because this one was faster
        removing = self._in_any_case(self._remove(device, drained=drained), f"remove {name}")
        await _end_of(removing)

    async def _remove(self, device: Device, *, drained: bool) -> None:
        if drained:
            await self._drain(device)
        if device in self._leaving:  # another call of ``remove`` is just removing it
            await asyncio.wait([self._leaving[device]])
        if device not in self._roster.members:
            return
        self._end_opening(device, self._take_back(device, None))
        self._roster.leave(device)
        await self._close_and_forget(device, "it is being removed")

    async def _drain(self, device: Device) -> None:
        this = asyncio.current_task()
        assert this is not None  # noqa: S101  # asyncio runs nothing else
        self._draining.add(this)
        try:
            await self._connecting.drain(device)
        finally:
            self._draining.discard(this)

    async def _close_and_forget(self, device: Device, reason: str) -> None:
        this = asyncio.current_task()
        assert this is not None  # noqa: S101  # asyncio runs nothing else
        self._leaving[device] = this
        try:
            await self._close(device, reason)
        finally:
            self._roster.forget(device)
            del self._leaving[device]

    async def close_all(self) -> None:
        """Close every device for good."""
        self.watchdog.close()
        async with anyio.create_task_group() as group:
            for device in list(self._roster.devices):
                group.start_soon(self._close, device, "the dispatcher is closing")
        # their devices are closed by now: what opens has ended, and what drains is to end
        for removing in self._draining:
            removing.cancel()
        if self._changing:
            await asyncio.wait(list(self._changing))

    # ---- the life of one device

    async def _open(self, device: Device) -> None:
        """Open a device, so that it is up. Raises what the driver raises, or ``DeviceTimeout``."""
        await self._connecting.open(device)
        self.watchdog.arm_anew()
        self._wake()

    def device_failed(self, device: Device, error: DeviceError) -> None:
        """Give the tasks of a failed device to the others, and open the device again later."""
        device.count_error()
        if isinstance(error, DeviceTimeout):
            device.timed_out(self._clock())
        self._end_opening(device, self._take_back(device, error))
        self._recover(device, error)

    def _recover(self, device: Device, error: BaseException) -> None:
        """Close a failed device and open it again, with growing pauses, in the background."""
        if device.state in (DeviceState.DRAINING, DeviceState.REMOVED):
            logger.warning("%s (it is being closed anyway)", error)
            return
        if device in self._opening and not self._opening[device].done():
            return
        if device.up:
            device.breaker.lost(device.answered_at)
        else:
            device.breaker.not_opened()
        device.become(DeviceState.LOST, self._clock(), error=error)
        self._in_background(device, self._reopen(device), "recover")

    def _in_background(
        self, device: Device, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        """Run what opens a device in an asyncio task, which ends when the device is closed."""
        task = self._loop.create_task(work, name=f"asyncinfer {name} {device.name}")
        self._opening[device] = task
        task.add_done_callback(partial(self._has_ended, device))
        return task

    def _has_ended(self, device: Device, task: asyncio.Task[None]) -> None:
        if self._opening.get(device) is task:
            del self._opening[device]

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
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # a driver may raise anything
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
        opening = self._opening.pop(device, None)
        if opening is not None:
            opening.cancel()
            device.leftovers.expect_end(opening, device.generation)
        self._connecting.cancel_opening(device)
        for burst in device.bursts:
            burst.cancel()
        self._end_opening(device, device.bursts)
        with anyio.CancelScope(shield=True):
            await self._connecting.close(device)
        if device.state is DeviceState.DRAINING:
            device.become(DeviceState.REMOVED, self._clock(), reason)


async def _end_of(task: asyncio.Task[None]) -> None:
    """Wait until ``task`` has ended, which goes on if the caller is cancelled; raise its error."""
    await asyncio.wait([task])
    if not task.cancelled():  # else the dispatcher was closed, and with it the device
        task.result()


def _seen(task: asyncio.Task[None]) -> None:
    """What the task raised is no news to asyncio."""
    if not task.cancelled():
        task.exception()
