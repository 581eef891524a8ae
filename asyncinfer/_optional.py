"""Packages that are needed only now and then, and the event loop to measure on."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, TypeVar

from asyncinfer.errors import ConfigError
from asyncinfer.registry import remedy

__all__ = ("optional", "run_async")

T = TypeVar("T")


def run_async(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of its own, uvloop's where that is installed."""
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
