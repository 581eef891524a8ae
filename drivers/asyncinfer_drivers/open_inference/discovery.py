"""The health and the models of configured servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeAlias

from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout
from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.faults import Failure, one_line
from asyncinfer_drivers.open_inference.transport import Transport

__all__ = ("leads",)

#: makes the driver of one server
Make: TypeAlias = Callable[..., Driver[Any, Any]]

_ACCESS = tuple(option.name for option in fields(Access))
_EXPECTED = ("model", "version", "protocol", "batched", "inputs", "outputs", *_ACCESS)


def leads(
    make: Make, configured: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
    """For each device, by its name, the function that asks its server."""
    return {name: partial(_look, make, name, options) for name, options in configured.items()}


def _look(
    make: Make, name: str, options: Mapping[str, Any], timeout: float
) -> list[dict[str, Any]]:
    return [asyncio.run(_asked(make, name, options, timeout))]


async def _asked(
    make: Make, name: str, options: Mapping[str, Any], timeout: float
) -> dict[str, Any]:
    if "url" not in options:
        raise ConfigError(f"{name}: options without a url: write host:port")
    try:
        async with asyncio.timeout(timeout):
            facts = await _server(name, options)
            if "model" in options and facts["state"] == "ready":
                await _model(make, name, options, timeout)
            return facts
    except TimeoutError as error:
        text = f"no answer from {options['url']} within {timeout:g} s"
        raise DeviceTimeout(name, text) from error


async def _model(make: Make, name: str, options: Mapping[str, Any], timeout: float) -> None:
    """Open and close the device; raises what is wrong with its model."""
    given = {key: options[key] for key in _EXPECTED if key in options}
    driver = make(options["url"], name=name, connect_timeout=timeout, **given)
    try:
        await driver.open()
    finally:
        await driver.close()


async def _server(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    access = Access(**{key: options[key] for key in _ACCESS if key in options})
    address = Address.parse(options["url"], options.get("protocol"), access.tls)
    transport = _transport(name, address, access)
    transport.connect()
    try:
        told = await transport.about(None)  # the caller has a limit
        models = {one_line(str(key)): one_line(str(told["models"][key])) for key in told["models"]}
    except Failure as failure:
        raise DeviceLost(name, f"no health: {failure}") from failure
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceLost(name, f"no health: {one_line(repr(error))}") from error
    finally:
        await transport.close()
    return {
        "state": "ready" if told["ready"] else "not ready",
        "server": one_line(f"{told['name']} {told['version']}"),
        "models": models,
        "url": options["url"],
    }


def _transport(name: str, address: Address, access: Access) -> Transport:
    try:
        if address.protocol == "grpc":
            from asyncinfer_drivers.open_inference.grpc_transport import GrpcTransport

            return GrpcTransport(address, access, "", "")
        from asyncinfer_drivers.open_inference.http_transport import HttpTransport
    except ModuleNotFoundError as error:
        command = "pip install 'asyncinfer[remote]'"
        raise ConfigError(f"{name}: {error.name} is not installed: {command}") from error
    return HttpTransport(address, access, "", "")
