"""Devices by name: a config's, and those that always work, such as ``cpu`` and ``sim:SECONDS``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncinfer.config.device import DeviceConfig
from asyncinfer.config.file import Config
from asyncinfer.errors import ConfigError
from asyncinfer.registry import did_you_mean

__all__ = ("select",)

#: how much slower than this host the stand-in for a Raspberry Pi is
STAND_IN_SLOWDOWN = 8.0

#: the driver behind ``raspberry_pi`` where the config has no device of that name
_LOCAL = "open_inference_local"
_STAND_IN = (
    f"stand-in: a server in a second process on this host, its CPU, one thread, slowed "
    f"{STAND_IN_SLOWDOWN:g} times"
)
_PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "auto": ({"device": "auto"}, ""),
    "cpu": ({"device": "cpu"}, ""),
    "mac_studio": ({"device": "auto"}, "this host"),
}
_TORCH_DEVICES = ("cuda", "mps")
#: the driver behind ``cortex_m4`` where the config has no device of that name
_EMULATED = "cortex_m4_emulated"
_EMULATED_NOTE = "emulated: the board's own firmware in QEMU; its times are this host's"
_RAY_NOTE = "an actor on the Ray cluster of RAY_ADDRESS or `ray start`, else on a local one"


def select(names: Sequence[str], config: Config | None = None) -> list[DeviceConfig]:
    """The devices of these names: first the config's, then those that always work.

    Always known are ``cpu``, ``auto``, ``cuda[:n]``, ``mps``, ``mac_studio``, ``raspberry_pi``,
    ``cortex_m4``, ``ray`` and ``sim:SECONDS``. No names: all of the config's devices, or ``auto``.
    A name that is asked for again gets a number: ``cpu``, ``cpu-2``.
    """
    own = config.devices if config else ()
    if not names:
        return list(own) or [_named("auto", {})]
    by_name = {device.name: device for device in own}
    return _numbered(_named(name, by_name) for name in names)


def _named(name: str, own: Mapping[str, DeviceConfig]) -> DeviceConfig:
    if name in own:
        return own[name]
    source = f"device {name!r}"
    if name in _PRESETS:
        options, note = _PRESETS[name]
        return DeviceConfig("torch", name, options, source, note)
    if name.partition(":")[0] in _TORCH_DEVICES:
        return DeviceConfig("torch", name, {"device": name}, source)
    if name.startswith("sim:"):
        note = "runs no model, returns its input"
        return DeviceConfig("simulated", name, {"service_time": _seconds(name)}, source, note)
    if name == "ray":
        return DeviceConfig("ray", name, {}, source, _RAY_NOTE)
    if name == "raspberry_pi":
        slowed = {"threads": 1, "slowdown": STAND_IN_SLOWDOWN}
        return DeviceConfig(_LOCAL, name, slowed, source, _STAND_IN)
    if name != "cortex_m4":
        more = ("raspberry_pi", "cortex_m4", "ray", "sim:SECONDS")
        known = {*own, *_PRESETS, *_TORCH_DEVICES, *more}
        raise ConfigError(f"unknown device {name!r}; {did_you_mean(name, known)}")
    return DeviceConfig(_EMULATED, name, {}, source, _EMULATED_NOTE)


def _seconds(name: str) -> float:
    text = name.removeprefix("sim:")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"device {name!r}: write sim:SECONDS, such as sim:0.05")
    return seconds


def _numbered(devices: Iterable[DeviceConfig]) -> list[DeviceConfig]:
    taken: set[str] = set()
    numbered: list[DeviceConfig] = []
    for device in devices:
        name, count = device.name, 1
        while name in taken:
            count += 1
            name = f"{device.name}-{count}"
        taken.add(name)
        numbered.append(replace(device, name=name))
    return numbered
