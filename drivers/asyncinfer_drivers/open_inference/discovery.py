"""The health and the models of configured servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout
from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.faults import one_line

__all__ = ("leads",)

#: makes the driver of one server
Make: TypeAlias = Callable[..., Driver[Any, Any]]

_ACCESS = ("ca", "cert", "key", "token_env", "token_file", "headers")
_EXPECTED = ("model", "version", "protocol", "batched", "inputs", "outputs", *_ACCESS)


def leads(
    make: Make, configured: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
    """By the device's name, what asks its server."""
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
    headers = access.all_headers()
    given: dict[str, Any] = {"ssl": address.tls}
    client: Any
    try:
        if address.protocol == "grpc":
            from tritonclient.grpc.aio import InferenceServerClient as GrpcClient

            given |= {"root_certificates": access.ca, "private_key": access.key}
            client = GrpcClient(address.target, **given, certificate_chain=access.cert)
            as_json = {"headers": headers, "as_json": True}
        else:
            from tritonclient.http.aio import InferenceServerClient as HttpClient

            given |= {"ssl_context": access.ssl_context()} if address.tls else {}
            client = HttpClient(f"{address.target}{address.path}", **given)
            as_json = {"headers": headers}
    except ModuleNotFoundError as error:
        command = "pip install 'asyncinfer[remote]'"
        raise ConfigError(f"{name}: {error.name} is not installed: {command}") from error
    async with client:
        return await _health(name, client, headers, as_json) | {"url": options["url"]}


async def _health(
    name: str, client: Any, headers: Mapping[str, str], as_json: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        ready = await client.is_server_ready(headers=headers)
        server = await client.get_server_metadata(**as_json)
    except Exception as error:  # tritonclient's own, aiohttp's and grpc's
        raise DeviceLost(name, f"no health: {one_line(str(error))}") from error
    models: Any = []
    with suppress(Exception):  # an extension: not every server has it
        models = await client.get_model_repository_index(**as_json)
    if isinstance(models, dict):  # gRPC's
        models = models.get("models", [])
    return {
        "state": "ready" if ready else "not ready",
        "server": f"{server.get('name', '')} {server.get('version', '')}".strip(),
        "models": {model["name"]: model.get("state", "READY") for model in models},
    }
