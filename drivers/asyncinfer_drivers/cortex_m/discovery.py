"""Boards at the serial ports of this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceTimeout
from asyncinfer_drivers.cortex_m.ports import SERIALX, is_serial
from asyncinfer_drivers.cortex_m.timing import Timing

__all__ = ("leads",)

#: makes the driver of one port
Make: TypeAlias = Callable[..., Driver[Any, Any]]

#: the options that say how to reach a board, and which one is expected
_OPTIONS = (
    *("baudrate", "dtr", "rts", "model", "input_shape", "output_shape"),
    *("raw", "channels_first"),  # may have to be said for a firmware of protocol 1
)
#: of boards that nobody has configured: the shapes need not be understood
_ANY = {"channels_first": False}


def leads(
    make: Make, configured: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
    """By port, what says HELLO to it: to the configured ones and all others of this host."""
    found: dict[str, Callable[[float], list[dict[str, Any]]]] = {}
    known: set[str] = set()
    for name, options in configured.items():
        port = options.get("port")
        if isinstance(port, str):
            given = {key: options[key] for key in _OPTIONS if key in options}
            found[port] = partial(_look, make, port, {"configured": name}, given)
            known.add(os.path.realpath(port.removeprefix(SERIALX)))
    try:
        from serial.tools.list_ports import comports  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return found | {"serial ports": _missing}
    for port in comports():
        if os.path.realpath(port.device) not in known:
            about = {"hardware": port.description} if port.hwid != "n/a" else {}
            found[port.device] = partial(_look, make, port.device, about, _ANY)
    return found


def _missing(timeout: float) -> list[dict[str, Any]]:
    raise ConfigError("listing them needs serial: pip install 'asyncinfer[serial]'")


def _look(
    make: Make, port: str, about: dict[str, Any], options: Mapping[str, Any], timeout: float
) -> list[dict[str, Any]]:
    if is_serial(port) and _in_use(port.removeprefix(SERIALX)):
        return [{**about, "state": "in use"}]
    driver = make(port, name=port, timing=Timing(open=timeout), **options)
    try:
        return [about | asyncio.run(_hello(driver))]
    except DeviceTimeout as error:
        return [{**about, "state": "silent", "error": str(error)}]


async def _hello(driver: Driver[Any, Any]) -> dict[str, Any]:
    try:
        await driver.open()
        board: Any = driver.board  # type: ignore[attr-defined]  # CortexM4Driver's
        keys = ("board", "firmware", "model")
        shapes = [list(output.torch_shape) for output in board.outputs]
        return {key: getattr(board, key) for key in keys} | {
            "input_shape": list(board.inputs[0].torch_shape),
            "output_shape": shapes if len(shapes) > 1 else shapes[0],
        }
    finally:
        await driver.close()


def _in_use(port: str) -> bool:
    """Whether it is the system's console, or a process is seen to have it open (Linux)."""
    wanted = os.path.realpath(port)
    with suppress(OSError):
        if Path(wanted).name in Path("/sys/class/tty/console/active").read_text().split():
            return True
    for open_file in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(open_file) == wanted:  # noqa: PTH115  # for thousands of files
                return True
        except OSError:  # it is gone, or not ours to see
            continue
    return False
