"""Opens and closes drivers within time limits, each in an asyncio task that can be left behind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from asyncinfer._core.devices.apart import set_apart
from asyncinfer._core.devices.device import Device
from asyncinfer._core.tasks.recorder import Recorder, logger
from asyncinfer.driver import ServiceTime, SupportsCalibrate, SupportsProbe
from asyncinfer.errors import ClosedError, DeviceError, DeviceLost, DeviceTimeout
from asyncinfer.options import Timeouts
from asyncinfer.stats import DeviceState

__all__ = ("Connecting",)

#: part of the close timeout for which cancelled calls may take to end, before the driver is closed
CALLS_PART = 0.5
#: part of the close timeout after which closing the driver is cancelled; that may take the rest
DRIVER_PART = 0.9


class Connecting:
    """Opens and closes devices. Each method keeps its timeout, whatever the driver does.

    A driver may ignore that it is cancelled. So each of its coroutines runs in an asyncio task, and
    what does not end in time is handed to the device's ``Leftovers``.
    """

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._timeouts = timeouts
        #: the asyncio tasks that open devices now, and what is set to wait for them no longer
        self._openings: dict[Device, tuple[asyncio.Task[None], asyncio.Future[None]]] = {}
        #: the asyncio tasks that close drivers again which opened too late
        self._undoing: dict[Device, asyncio.Task[None]] = {}
        #: the latest opening of each device in which its driver was asked to open
        self._asked: WeakKeyDictionary[Device, int] = WeakKeyDictionary()

    async def open(self, device: Device) -> None:
        """Open and calibrate a device, so that it is up.

        Raises what the driver raises, ``DeviceTimeout`` past the open timeout, and ``ClosedError``
        if the device was closed meanwhile.
        """
        if device.state in (DeviceState.DRAINING, DeviceState.REMOVED):
            raise _closed_meanwhile(device)
        device.become(DeviceState.OPENING, self._clock())
        name = f"asyncinfer open {device.name}"
        opening = self._loop.create_task(self._open_driver(device, device.generation), name=name)
        set_apart(opening)
        given_up = self._loop.create_future()
        self._openings[device] = opening, given_up
        seconds, first = self._timeouts.open, asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait([opening, given_up], timeout=seconds, return_when=first)
        finally:
            overdue = opening.cancel()
            device.leftovers.expect_end(opening, device.generation)
            if self._openings.get(device) == (opening, given_up):
                del self._openings[device]
        if device.state is not DeviceState.OPENING:
            raise _closed_meanwhile(device)
        if overdue:
            raise DeviceTimeout(device.name, f"did not open within {seconds} s")
        if opening.cancelled():
            raise DeviceLost(device.name, "did not open: it cancelled its own opening")
        try:
            opening.result()
        except OSError as error:
            raise DeviceError(device.name, f"did not open: {error}") from error
        self._come_up(device)

    async def _open_driver(self, device: Device, generation: int) -> None:
        opening = asyncio.current_task()
        assert opening is not None  # noqa: S101  # asyncio runs nothing else
        if device in self._undoing:
            await asyncio.wait([self._undoing[device]])
        self._asked[device] = generation
        await _call(device, "open")
        if opening.cancelling():  # the driver ignored that; nobody waits for this opening any more
            asked = self._asked[device] == device.generation
            if not (asked and _opened_again(device, generation)):
                await self._undo(device, opening)
            return
        device.reread_attributes()
        await _make_ready(device)

    async def _undo(self, device: Device, opening: asyncio.Task[None]) -> None:
        """Close a driver that opened too late, within the close timeout."""
        self._undoing[device] = opening
        timer = self._loop.call_later(self._timeouts.close, opening.cancel)
        try:
            await _close_driver(device)
        finally:
            timer.cancel()
            self._undoing.pop(device, None)

    def _come_up(self, device: Device) -> None:
        now = self._clock()
        device.breaker.opened(now)
        if device.breaker.half_open:
            text = f"on trial with one task, after {device.failures} failures"
            device.become(DeviceState.SUSPECT, now, text)
        else:
            device.become(DeviceState.READY, now)

    def cancel_opening(self, device: Device) -> None:
        """Stop opening the device, if it is being opened, and wait no longer for the driver."""
        opening, given_up = self._openings.pop(device, (None, None))
        if opening is not None and given_up is not None:
            opening.cancel()
            device.leftovers.expect_end(opening, device.generation)
            given_up.set_result(None)

    async def drain(self, device: Device) -> None:
        """Wait until the device has finished what it runs.

        Gives up, with a warning in the log, once the drain timeout is over or the device is silent
        for far too long.
        """
        seconds = self._timeouts.drain
        until = math.inf if seconds is None else self._clock() + seconds
        while device.bursts:
            left = min(until, device.silent_at()) - self._clock()
            if left <= 0:
                logger.warning("device %r does not finish: its tasks go elsewhere", device.name)
                return
            runners = [burst.runner for burst in device.bursts if burst.runner is not None]
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait(runners, timeout=min(left, 1e6), return_when=first)

    async def close(self, device: Device) -> None:
        """Wait for cancelled calls to end, then close the driver; within the close timeout.

        What still goes on after that is left behind, and counts as wedged.
        """
        begun, seconds, left = self._clock(), self._timeouts.close, device.leftovers
        await left.wait_for_ends(CALLS_PART * seconds)
        closing = self._loop.create_task(
            _close_driver(device), name=f"asyncinfer close {device.name}"
        )
        set_apart(closing)
        left.expect_end(closing, device.generation)
        try:
            await asyncio.wait([closing], timeout=begun + DRIVER_PART * seconds - self._clock())
        finally:
            late = closing.cancel()
        if late:
            logger.warning("device %r did not close within %s s", device.name, seconds)
        await left.wait_for_ends(begun + seconds - self._clock())
        if left.mark_wedged():
            self._report_wedged(device)

    def _report_wedged(self, device: Device) -> None:
        left = device.leftovers.wedged
        text = f"{left} call{'s'[: left > 1]} left behind"
        logger.warning("device %r is wedged: %s", device.name, text)
        self._recorder.device_event("device.wedged", device.name, reason=text)


def _closed_meanwhile(device: Device) -> ClosedError:
    return ClosedError(f"the dispatcher was closed while device {device.name!r} was opening")


def _opened_again(device: Device, generation: int) -> bool:
    """Whether the device was opened again since, or is just being opened again."""
    if device.state is DeviceState.OPENING:
        return device.generation != generation
    return device.up or (device.state is DeviceState.DRAINING and len(device.bursts) > 0)


async def _make_ready(device: Device) -> None:
    driver = device.driver
    if isinstance(driver, SupportsCalibrate):
        line = await _calibrated(device.name, driver)
        if line is not None:
            device.calibrate(line)
    if device.breaker.half_open and isinstance(driver, SupportsProbe):
        await driver.probe()


async def _calibrated(name: str, driver: SupportsCalibrate) -> ServiceTime | None:
    """The driver's service time. Whatever fails there, it is this device's fault alone."""
    said = "its warm-up failed"
    try:
        return await driver.calibrate()
    except DeviceError as error:
        error.message = f"{said}: {error.message}"
        raise
    except Exception as error:
        raise DeviceError(name, f"{said}: {type(error).__name__}: {error}") from error


async def _close_driver(device: Device) -> None:
    try:
        await _call(device, "close")
    except Exception as error:
        logger.warning("device %r did not close cleanly: %r", device.name, error)


def _call(device: Device, method: str) -> Coroutine[Any, Any, None]:
    function = getattr(device.driver, method, None)
    return _nothing() if function is None else function()


async def _nothing() -> None:
    """Stand in for a method the driver does not have."""
