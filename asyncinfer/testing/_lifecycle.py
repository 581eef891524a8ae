"""Checks of a driver's promises about opening, closing and losing its device."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from asyncinfer.driver import SupportsCalibrate, SupportsProbe
from asyncinfer.errors import ConfigError, DeviceError
from asyncinfer.testing._case import AnyDriver, Broken, Case, shown
from asyncinfer.testing._watch import open_files

__all__ = ("again", "calibrated", "close_any_time", "closed", "failed_open", "unplugged")

#: how often a driver is opened, used and closed while open files are counted
_CYCLES = 3


async def closed(case: Case) -> None:
    """Call a closed driver: it must raise a ``DeviceError``, or answer if it needs no opening."""
    one, _ = case.pair
    driver = case.factory()
    await _while_closed(case, driver, [case.inputs[one]], "before open")
    await case.do(driver, "open")
    await case.do(driver, "close")
    await _while_closed(case, driver, [case.inputs[one]], "after close")


async def _while_closed(case: Case, driver: AnyDriver, batch: list[Any], when: str) -> None:
    case.failed(await case.attempt(driver, "infer", batch), where=f"infer {when}")
    if isinstance(driver, SupportsProbe):
        case.failed(await case.attempt(driver, "probe"), where=f"probe {when}")


async def close_any_time(case: Case) -> None:
    """Close the driver unopened, twice, while it opens, and while it computes. Then use it."""
    one, other = case.pair
    driver = case.factory()
    await case.do(driver, "close")
    for steps in (0, 1, 3):
        opening = case.start(driver, "open")
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await case.outcome(opening)
        await case.do(driver, "close")
    await case.do(driver, "open")
    call = case.start(driver, "infer", case.batch([one]))
    await asyncio.sleep(0)
    await case.do(driver, "close")
    await case.outcome(call)
    await case.do(driver, "close")
    await case.do(driver, "open")
    try:
        await case.infer(driver, [other])
    finally:
        await case.attempt(driver, "close")


async def failed_open(case: Case) -> None:
    """Open a driver that cannot be opened: it must raise a fitting error, and close."""
    if case.cannot_open is None:
        return
    driver = case.cannot_open()
    for _ in range(2):
        outcome = await case.attempt(driver, "open")
        if not isinstance(outcome, DeviceError | ConfigError):
            raise Broken(f"open gave {shown(outcome)}, not a DeviceError or ConfigError")
        await case.do(driver, "close")


async def unplugged(case: Case) -> None:
    """Take the device away in the middle of a call. Errors must be its fault; it opens again."""
    if case.unplug is None:
        return
    one, other = case.pair
    async with case.opened() as driver:
        call = case.start(driver, "infer", case.batch([one]))
        await asyncio.sleep(0)
        await case.unplug(driver)
        case.failed(await case.outcome(call), where="the call in flight")
        outcome = await case.attempt(driver, "infer", case.batch([other]))
        case.failed(outcome, where="the next call")
        await case.do(driver, "close")
        await case.do(driver, "open")
        await case.infer(driver, [one])


async def calibrated(case: Case) -> None:
    """Call ``probe`` and ``calibrate``, if the driver has them, and ``infer`` afterwards."""
    async with case.opened() as driver:
        if isinstance(driver, SupportsProbe):
            await case.do(driver, "probe")
        if isinstance(driver, SupportsCalibrate):
            _is_line(await case.do(driver, "calibrate"))
        await case.infer(driver, [0])


def _is_line(time: object) -> None:
    if time is None:
        return
    figures = [getattr(time, name, None) for name in ("per_batch", "per_task")]
    if not all(isinstance(f, int | float) and 0 <= f < math.inf for f in figures):
        raise Broken(f"calibrate returned {shown(time)}, not a ServiceTime of 0 or more seconds")


async def again(case: Case) -> None:
    """Open, use and close a driver again and again. No file may stay open."""
    driver = case.factory()
    await _cycle(case, driver)
    before = open_files()
    for _ in range(_CYCLES):
        await _cycle(case, driver)
    for _ in range(100):  # files that are just being closed may take a moment
        if open_files() < before + _CYCLES:
            return
        await asyncio.sleep(0.005)
    raise Broken(f"{open_files() - before} more files are open after {_CYCLES} times")


async def _cycle(case: Case, driver: AnyDriver) -> None:
    try:
        await case.do(driver, "open")
        await case.infer(driver, [0])
    finally:
        await case.do(driver, "close")
