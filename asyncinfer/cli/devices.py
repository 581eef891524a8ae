"""``asyncinfer devices``: what can be used here, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import typer

from asyncinfer import config as configuration
from asyncinfer.cli.arguments import Config, Json
from asyncinfer.cli.output import emit, people
from asyncinfer.config import DeviceConfig
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.model import builtin
from asyncinfer.registry import DRIVERS, driver_names, load_driver, model_names

__all__ = ("devices",)

#: names shown as always working, the simulated one as an example
NAMES = ("auto", "cpu", "mac_studio", "raspberry_pi", "cortex_m4", "ray", "sim:0.1")


def devices(config: Config = None, as_json: Json = False) -> None:
    """List drivers, models and devices.

    The exit status is 1 if a device of the config could not be used.
    """
    own = configuration.load(config).devices if config else ()
    configured = [_device(device) for device in own]
    facts = {
        "drivers": [_driver(name) for name in driver_names()],
        "host": _host(),
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


def _host() -> list[dict[str, Any]]:
    """What the drivers that can look for devices find on this host."""
    found: list[dict[str, Any]] = []
    for name in driver_names():
        try:
            discover = getattr(load_driver(name), "discover", None)
            found.extend({"driver": name, **facts} for facts in (discover() if discover else ()))
        except AsyncInferError as error:
            found.append({"driver": name, "name": "-", "error": str(error)})
    return found


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
    known = ("name", "driver", "description")
    rest = [f"{key} {value}" for key, value in facts.items() if key not in known and value]
    return ", ".join([facts["description"], *rest] if facts.get("description") else rest)


def _usable(facts: dict[str, Any]) -> str:
    return f"{facts['driver']}{': ' + facts['note'] if facts['note'] else ''}"
