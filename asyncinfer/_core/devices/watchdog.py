"""Finds calls and devices that are silent for too long: has them copied, probed, or lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.devices.apart import set_apart
from asyncinfer._core.devices.device import GRACE, OVERDUE, Burst, Device
from asyncinfer._core.devices.lateness import Lateness
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.tasks.recorder import logger
from asyncinfer.driver import SupportsProbe
from asyncinfer.errors import DeviceError, DeviceLost, DeviceTimeout
from asyncinfer.stats import DeviceState

__all__ = ("Watchdog",)

#: shortest time in which all devices are looked at once, in seconds
WATCH_PAUSE = 0.1
#: most devices looked at in one go; if there are more, the looks are spread over that time
DEVICES_A_LOOK = 256
#: a device that stays silent is looked into after silences of 1, 2, 4 ... times the bearable one,
#: up to this many times
LONGEST_PATIENCE = 1024.0
#: after so many times the bearable silence a call that nobody waits for any more is cancelled
ENOUGH = 4.0
#: seconds a device has for its ``probe``
PROBE_TIMEOUT = 5.0


class Watchdog:
    """Looks at the devices from time to time, by one timer that is set only while one is busy.

    A device whose calls are silent for far too long becomes suspect, until one of them brings
    results. If its driver has a ``probe`` and that fails, the device is lost. A probe that
    succeeds, or does not end, says nothing about the call. With ``loses``, a device is lost as well
    if it stays silent for as long as ``Device.lost_at`` says.

    Each call that is long overdue is shown to ``overdue``, once, and again if copies have answered
    for it and its device stays silent. Time by which the event loop was
    late counts for none of this, as an answer may have been there and nobody looked.
    """

    def __init__(
        self,
        roster: Roster,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        device_failed: Callable[[Device, DeviceError], None],
        *,
        overdue: Callable[[Burst], None],
        loses: bool,
    ) -> None:
        self._overdue = overdue
        self._loses = loses
        #: the calls that ``overdue`` was shown: bursts, and when the call began
        self._shown: dict[Burst, float] = {}
        self._lateness = Lateness()
        #: whether the event loop was late at this look
        self._late = False
        self._roster = roster
        self._clock = clock
        self._loop = loop
        self._device_failed = device_failed
        self._alarm = Alarm(loop, self._look)
        self._closed = False
        self._looked_at = 0
        #: the shortest call of a single task that the timer reckons with, in seconds
        self._quickest = 0.0
        self._next_due = math.inf
        self._probes: dict[Device, asyncio.Task[None]] = {}

    def arm(self) -> None:
        """A pass was made: set the timer, unless it rings in time.

        It may be set by an estimate that has turned out far too long: a calibration, a first call.
        """
        if self._closed:
            return
        if not self._alarm.is_set:
            self._alarm.within(WATCH_PAUSE)
        elif self._roster.quickest < self._quickest:
            self._quickest = self._roster.quickest
            self._alarm.within(GRACE + OVERDUE * self._quickest)

    def arm_anew(self) -> None:
        """A device came up: set the timer anew, as this one may have to be looked at sooner."""
        self._alarm.cancel()
        self.arm()

    def close(self) -> None:
        """Look at no device any more, whatever comes."""
        self._closed = True
        self._alarm.cancel()

    def _look(self) -> None:
        """Look at the next some devices, and set the timer for the others, or for the next round.

        There is no next round if no device is busy.
        """
        now, up = self._clock(), self._roster.up
        self._late = self._lateness.note(now, self._alarm.late)
        some = up[self._looked_at : self._looked_at + DEVICES_A_LOOK]
        self._next_due = min([self._next_due, *(self._due(device, now) for device in some)])
        self._looked_at += DEVICES_A_LOOK
        if self._looked_at < len(up):
            self._alarm.within(WATCH_PAUSE * DEVICES_A_LOOK / len(up))
            return
        due, self._looked_at, self._next_due = self._next_due, 0, math.inf
        self._shown = {burst: at for burst, at in self._shown.items() if _runs(burst)}
        if due < math.inf:
            self._roster.quickest = math.inf
            self._quickest = min(_quickest(device) for device in up)
            shortest = GRACE + OVERDUE * self._quickest
            self._alarm.within(max(WATCH_PAUSE, min(due - now, shortest)))

    def _due(self, device: Device, now: float) -> float:
        """When to look at the device again; what it does not answer in time has consequences."""
        if not (device.up and device.bursts):
            return math.inf
        overdue_at = self._show_overdue(device, now)
        excused = self._lateness.since(device.silent_since)
        lost_at = device.lost_at() + excused if self._loses else math.inf
        if lost_at <= now and not self._late:
            self._lose(device, now)
            return math.inf
        if device.patience <= LONGEST_PATIENCE and device.silent_at() + excused <= now:
            self._suspect(device, now)
        more = device.patience <= LONGEST_PATIENCE
        silent_at = device.silent_at() + excused if more else math.inf
        return min(overdue_at, lost_at, silent_at)

    def _show_overdue(self, device: Device, now: float) -> float:
        """Show the calls that are long overdue; return when another one may be."""
        due = math.inf
        for burst in list(device.bursts):
            if self._shown.get(burst) == burst.call_began:
                continue
            at = device.overdue_at(burst) + self._lateness.since(burst.call_began)
            if at > now:
                due = min(due, at)
            else:
                self._shown[burst] = burst.call_began
                self._overdue(burst)
        return due

    def _lose(self, device: Device, now: float) -> None:
        """The device has been silent for so long that it is taken to hang."""
        oldest = now - min(burst.call_began for burst in device.bursts)
        silent = max(oldest, device.silent_for(now))
        device.run_limit.cut_off(silent, now)
        text = f"no answer for {silent:.3g} s, and {device.latency:.3g} s were expected"
        limit = "by its history that is too long (Timeouts.run sets a limit of your own)"
        self._device_failed(device, DeviceTimeout(device.name, f"{text}: {limit}"))

    def _suspect(self, device: Device, now: float) -> None:
        since = min(burst.call_began for burst in device.bursts)
        device.double_patience()
        if not device.suspect:
            text = f"no answer for {now - since:.3g} s, expected after {device.latency:.3g} s"
            device.become(DeviceState.SUSPECT, now, text)
        if device.patience > ENOUGH:
            for burst in [burst for burst in device.bursts if burst.abandoned]:
                self._overdue(burst)
        if isinstance(device.driver, SupportsProbe) and device not in self._probes:
            name = f"asyncinfer probe {device.name}"
            self._probes[device] = self._loop.create_task(self._probe(device), name=name)
            set_apart(self._probes[device])

    # ---- the health check

    def stop_probe(self, device: Device) -> None:
        """Cancel the probe of a device that is lost or leaves."""
        probe = self._probes.pop(device, None)
        if probe is not None:
            probe.cancel()
            device.leftovers.expect_end(probe, device.generation)

    async def _probe(self, device: Device) -> None:
        asked_at, generation = device.answered_at, device.generation
        error: DeviceError | None = None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await device.driver.probe()  # type: ignore[attr-defined]
        except TimeoutError:
            logger.warning(
                "device %r did not answer its probe within %s s", device.name, PROBE_TIMEOUT
            )
        except DeviceError as raised:
            error = raised
        except (ConnectionError, EOFError) as raised:
            error = DeviceLost(device.name, f"{type(raised).__name__}: {raised}")
        except Exception:
            logger.exception("the probe of device %r failed: that says nothing", device.name)
        finally:  # a probe that raises CancelledError is not the last one either
            if self._probes.get(device) is asyncio.current_task():
                del self._probes[device]
        silent = device.answered_at == asked_at and device.generation == generation
        if error is not None and device.up and silent:
            self._device_failed(device, error)


def _quickest(device: Device) -> float:
    """Seconds of a call with a single task; 0 while unknown, as it may be overdue at once."""
    return device.quickest if device.quickest < math.inf else 0.0


def _runs(burst: Burst) -> bool:
    return burst in burst.device.bursts
