"""``asyncinfer devices``: what can be used here, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from asyncinfer import config as configuration
from asyncinfer.cli.arguments import AllowCode, Config, Json
from asyncinfer.cli.discovery import look
from asyncinfer.cli.output import emit, people
from asyncinfer.cli.tools import read_config
from asyncinfer.config import DeviceConfig
from asyncinfer.errors import ConfigError
from asyncinfer.model import builtin
from asyncinfer.registry import DRIVERS, driver_names, load_driver, model_names

__all__ = ("devices",)

#: names shown as always working, the simulated one as an example
NAMES = ("auto", "cpu", "mac_studio", "raspberry_pi", "cortex_m4", "ray", "sim:0.1")


def devices(
    config: Config = None,
    allow_code: AllowCode = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds each of those asked has to answer.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """List drivers, models and devices: of this host, at its serial ports, and of other hosts.

    All are asked at once, and none for longer than the timeout. The exit status is 1 if a device
    of the config could not be used; one that does not answer now is no error.
    """
    own = read_config(config, allow_code=allow_code).devices
    configured = [_device(device) for device in own]
    drivers = [_driver(name) for name in driver_names()]
    factories = {d["name"]: load_driver(d["name"]) for d in drivers if not d["error"]}
    usable = [device for device, facts in zip(own, configured, strict=True) if not facts["error"]]
    facts = {
        "drivers": drivers,
        **look(factories, usable, timeout),
        "models": [_model(name) for name in model_names()],
        "names": [_name(name, own) for name in NAMES],
        "config": configured,
    }
    if as_json:
        emit(facts)
    else:
        _show(facts)
    if any(device["error"] for device in configured):
        raise typer.Exit(1)


def _driver(name: str) -> dict[str, Any]:
    entry = next(iter(entry_points(group=DRIVERS, name=name)))
    facts = {"name": name, "from": entry.dist.name if entry.dist else "", "class": entry.value}
    try:
        load_driver(name)
    except ConfigError as error:
        return {**facts, "error": str(error)}
    return {**facts, "error": None}


def _model(name: str) -> dict[str, Any]:
    try:
        return {"name": name, "description": builtin(name).description, "error": None}
    except ConfigError as error:
        return {"name": name, "description": "", "error": str(error)}


def _name(name: str, own: Sequence[DeviceConfig]) -> dict[str, Any]:
    try:
        (device,) = configuration.select([name], configuration.Config(tuple(own)))
        device.check()
    except ConfigError as error:
        return {"name": name, "driver": None, "note": "", "error": str(error)}
    return {"name": name, "driver": device.driver, "note": device.note, "error": None}


def _device(device: DeviceConfig) -> dict[str, Any]:
    facts = {"name": device.name, "driver": device.driver, "options": device.options}
    try:
        device.check()
    except ConfigError as error:
        return {**facts, "error": str(error)}
    return {**facts, "error": None}


def _show(facts: dict[str, Any]) -> None:
    screen = people()
    sections = {
        "Drivers": [(d["name"], d["error"] or d["class"]) for d in facts["drivers"]],
        "On this host": [(d["name"], _described(d)) for d in facts["host"]],
        "Found": [(d["name"], _found(d)) for d in facts["found"]],
        "Built-in models": [(m["name"], m["error"] or m["description"]) for m in facts["models"]],
        "Names for --devices": [(n["name"], n["error"] or _usable(n)) for n in facts["names"]],
        "In the config": [(d["name"], d["error"] or d["driver"]) for d in facts["config"]],
    }
    for title, rows in sections.items():
        if rows:
            screen.print(title, style="bold")
            width = max(len(name) for name, _ in rows)
            for name, text in rows:
                screen.print(f"  {name:<{width}}  {text}", markup=False)


def _described(facts: dict[str, Any]) -> str:
    known = ("name", "driver", "description", "state", "error")
    rest = [f"{key} {_text(value)}" for key, value in facts.items() if key not in known and value]
    return ", ".join([facts["description"], *rest] if facts.get("description") else rest)


def _text(value: Any) -> str:
    """A mapping as ``key value`` pairs, anything else as it is."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)


def _found(facts: dict[str, Any]) -> str:
    told = facts["error"] or _described(facts)
    return f"{facts['driver']}, {facts['state']}{': ' + told if told else ''}"


def _usable(facts: dict[str, Any]) -> str:
    return f"{facts['driver']}{': ' + facts['note'] if facts['note'] else ''}"
