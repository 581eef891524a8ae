"""How long one task takes on devices that were asked for by name."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncinfer._optional import run_async
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig, select
from asyncinfer.driver import Driver, SupportsCalibrate
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.model import Model, resolve
from asyncinfer.testing import SimulatedDriver

__all__ = ("MODEL", "NAMES", "Timed", "timed")

#: the devices of the paper's command line
NAMES = ("mac_studio", "raspberry_pi", "cortex_m4")
#: what they run to be timed: small enough for a microcontroller
MODEL = "digits"
#: seconds in which a device has to open and to be timed
PATIENCE = 120.0


@dataclass(frozen=True)
class Timed:
    """A device and its service time."""

    name: str
    #: seconds per task; ``nan`` never
    service_time: float
    #: what it is, for people
    note: str


def timed(context: Context, calibrations: int) -> tuple[list[Timed], list[str]]:
    """The devices that can be opened here, and a line for each that cannot."""
    found: list[Timed] = []
    skipped: list[str] = []
    own = [device.name for device in context.config.devices]
    for device in select(context.devices or own or NAMES, context.config):
        context.progress(f"timing {device.name}")
        try:
            seconds = run_async(_service_time(device, calibrations))
        except (AsyncInferError, TimeoutError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            skipped.append(f"{device.name}: {reason}")
            continue
        found.append(Timed(device.name, seconds, _note(device)))
    return found, skipped


def _note(device: DeviceConfig) -> str:
    if device.driver == "simulated":
        return "as stated"
    return f"timed with {MODEL}, one task a call{'; ' if device.note else ''}{device.note}"


async def _service_time(device: DeviceConfig, calibrations: int) -> float:
    driver = device.build(_model(device))
    if isinstance(driver, SimulatedDriver):
        return driver.service_time
    try:
        async with asyncio.timeout(PATIENCE):
            await driver.open()
            return statistics.median(await _timings(driver, calibrations))
    finally:
        await driver.close()


def _model(device: DeviceConfig) -> Model | None:
    return None if device.driver == "simulated" else resolve(MODEL)


async def _timings(driver: Driver[Any, Any], count: int) -> Sequence[float]:
    """Seconds of single tasks, as the driver measures them."""
    if not isinstance(driver, SupportsCalibrate):
        raise ConfigError(f"driver of {driver.name!r} cannot time itself: it has no calibrate()")
    timings: list[float] = []
    for _ in range(count):
        time = await driver.calibrate()
        if time is None:
            raise ConfigError(f"device {driver.name!r} could not be timed with {MODEL}")
        timings.append(time.of(1))
    return timings
