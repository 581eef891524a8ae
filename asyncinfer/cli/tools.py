"""The event loop, optional packages and the facts about devices that commands share."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any, TypeVar

from asyncinfer.errors import ConfigError
from asyncinfer.registry import remedy

if TYPE_CHECKING:
    from asyncinfer.stats import DeviceStats

__all__ = ("device_facts", "optional", "run_async")

T = TypeVar("T")


def run_async(coro: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine, on uvloop where that is installed."""
    try:
        factory = importlib.import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coro)


def optional(module: str, purpose: str) -> Any:
    """Import a package that only ``purpose`` needs; ``ConfigError`` says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        try:
            own = distribution("asyncinfer")
        except PackageNotFoundError:
            own = None
        raise ConfigError(f"{purpose} needs {missing}: {remedy(missing, dist=own)}") from error


def device_facts(device: DeviceStats, elapsed: float) -> Mapping[str, Any]:
    """One device's part of a summary."""
    return {
        "name": device.name,
        "state": str(getattr(device.state, "value", device.state)),
        "tasks": device.tasks,
        "batches": device.batches,
        "errors": device.errors,
        "utilisation": min(1.0, device.busy_seconds / elapsed) if elapsed else 0.0,
        "service_time": device.service_time,
        "throughput": device.tasks / elapsed if elapsed else 0.0,
    }
