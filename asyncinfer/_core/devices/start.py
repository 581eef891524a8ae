"""The first opening of a dispatcher's devices: how long entering waits, and which errors end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from asyncinfer._core.devices.device import Device
from asyncinfer.errors import ClosedError, DeviceError

__all__ = ("AT_ONCE", "until_started")

#: seconds that every device has to open, or to turn out wrong, before work begins without it
AT_ONCE = 0.05

#: the devices, by the asyncio tasks that open them
Openings = Mapping[asyncio.Task[None], Device]


async def until_started(
    openings: Openings, clock: Callable[[], float], *, for_all: bool
) -> Mapping[Device, DeviceError]:
    """Wait until a device is up, ``AT_ONCE`` at least, or with ``for_all`` until all have ended.

    Returns the devices that have failed. Raises the first ``DeviceError`` if all have, and any
    other error at once.
    """
    errors: dict[Device, DeviceError] = {}
    until = clock() + AT_ONCE
    _take_errors(openings, errors)
    while pending := [opening for opening in openings if not opening.done()]:
        left = until - clock()
        if left <= 0 and not for_all and any(device.up for device in openings.values()):
            return errors
        await asyncio.wait(
            pending, timeout=left if left > 0 else None, return_when=asyncio.FIRST_COMPLETED
        )
        _take_errors(openings, errors)
    if errors and len(errors) == len(openings):
        first, *others = errors.values()
        for other in others:
            first.add_note(str(other))
        raise first
    return errors


def _take_errors(openings: Openings, errors: dict[Device, DeviceError]) -> None:
    """Add the devices that have failed to ``errors``. Raises what is no fault of a device."""
    for opening, device in openings.items():
        if not opening.done():
            continue
        if opening.cancelled():
            text = f"the dispatcher was closed while device {device.name!r} was opening"
            raise ClosedError(text)
        error = opening.exception()
        if isinstance(error, DeviceError):
            errors.setdefault(device, error)
        elif error is not None:
            raise error
