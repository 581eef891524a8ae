"""The one TOML file that describes devices, read and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asyncinfer.config.device import DeviceConfig
from asyncinfer.config.permission import refuse_code
from asyncinfer.config.tables import check_keys, dispatcher, typed
from asyncinfer.driver import shared_names
from asyncinfer.errors import ConfigError
from asyncinfer.registry import did_you_mean, driver_names

__all__ = ("Config", "load", "parse")

#: bytes of a config file
MAX_BYTES = 1 << 20
#: devices in one
MAX_DEVICES = 10_000

#: keys of a device that are attributes of every driver
_BATCHING = ("max_wait", "latency_target")


@dataclass(frozen=True)
class Config:
    """What one file says. An empty one stands for no file."""

    #: the devices, in the file's order, with unique names
    devices: tuple[DeviceConfig, ...] = ()
    #: keyword arguments of the dispatcher
    dispatcher: Mapping[str, Any] = field(default_factory=dict)
    #: what ``asyncinfer serve`` is told; checked there
    serve: Mapping[str, Any] = field(default_factory=dict)


def load(path: str | Path, *, allow_code: bool = False) -> Config:
    """Read and check a file; ``ConfigError`` names the file, table, key and nearest valid key.

    :param allow_code: devices may name functions to import, models' files and the like, all of
        which can run code when the device is built: say so for files you trust.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"config {path} is larger than {MAX_BYTES:,} bytes")
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"cannot read config {path}: {reason}") from error
    return parse(text, str(path), allow_code=allow_code)


def parse(text: str, source: str = "config", *, allow_code: bool = False) -> Config:
    """Check the text of a config file; ``source`` names it in errors. Else as ``load``."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of endless numbers, and of deep nesting
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    check_keys(document, {"device", "dispatcher", "serve"}, source)
    serve = typed(document, "serve", source, dict, "a table: [serve]") or {}
    tables = document.get("device", [])
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise ConfigError(f"{source}: each device is a table of its own: write [[device]]")
    devices = list[DeviceConfig]()
    for number, table in enumerate(tables, 1):
        devices += _devices(table, f"{source}: [[device]] {number}", allow_code=allow_code)
        if len(devices) > MAX_DEVICES:
            raise ConfigError(f"{source}: more than {MAX_DEVICES:,} devices")
    _check_unique(devices, source)
    return Config(tuple(devices), dispatcher(document.get("dispatcher", {}), source), serve)


def _devices(table: Mapping[str, Any], source: str, *, allow_code: bool) -> list[DeviceConfig]:
    """The device of one table, or as many as its ``count`` says: ``name-1``, ``name-2``..."""
    device, count = replace(_device(table, source), allow_code=allow_code), table.get("count")
    if not allow_code:
        refuse_code(device.driver, device.options, device.source)
    if count is None:
        return [device]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{source}: 'count' must be a whole number from 1, not {count!r}")
    if count > MAX_DEVICES:
        raise ConfigError(f"{source}: {count:,} devices, more than {MAX_DEVICES:,}")
    return [replace(device, name=f"{device.name}-{n}") for n in range(1, count + 1)]


def _device(table: Mapping[str, Any], source: str) -> DeviceConfig:
    check_keys(table, {"driver", "name", "count", "options", "shares", *_BATCHING}, source)
    driver = typed(table, "driver", source, str, "a text")
    if driver is None:
        raise ConfigError(f"{source}: 'driver' is missing; known: {', '.join(driver_names())}")
    if driver not in driver_names():
        raise ConfigError(
            f"{source}: unknown driver {driver!r}; {did_you_mean(driver, driver_names())}"
        )
    name = typed(table, "name", source, str, "a text")
    options = typed(table, "options", source, dict, "a table: [device.options]") or {}
    if "name" in options:
        raise ConfigError(f"{source}, options: 'name' belongs beside 'driver', not in the options")
    batching = {key: table[key] for key in _BATCHING if key in table}
    for key, value in batching.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ConfigError(f"{source}: {key!r} must be seconds, 0 or more, not {value!r}")
    where = f"{source} {name or driver!r}"
    shares = shared_names(table["shares"], where) if "shares" in table else None
    return DeviceConfig(driver, name or driver, options, where, batching=batching, shares=shares)


def _check_unique(devices: Sequence[DeviceConfig], source: str) -> None:
    taken: set[str] = set()
    for device in devices:
        if device.name in taken:
            text = f"two devices are called {device.name!r}; give each a name"
            raise ConfigError(f"{source}: {text}")
        taken.add(device.name)
