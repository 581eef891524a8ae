"""The event loop, optional packages and the facts about devices that commands share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncinfer._optional import run_async
from asyncinfer.cli.output import seconds
from asyncinfer.config import Config, load
from asyncinfer.registry import optional
from asyncinfer.stats import DeviceState, DeviceStats

__all__ = ("device_facts", "optional", "read_config", "remarks", "run_async", "trouble")


def read_config(path: Path | None, *, allow_code: bool) -> Config:
    """What the file of ``--config`` says; an empty config without one."""
    return load(path, allow_code=allow_code) if path else Config()


def device_facts(device: DeviceStats, elapsed: float) -> Mapping[str, Any]:
    """One device's part of a summary."""
    return {
        "name": device.name,
        "state": device.state.value,
        "state_seconds": device.state_seconds,
        "reason": device.reason,
        "failures": device.failures,
        "next_attempt": device.next_attempt,
        "wedged": device.wedged,
        "rests": device.rests,
        "tasks": device.tasks,
        "batches": device.batches,
        "errors": device.errors,
        "utilisation": min(1.0, device.busy_seconds / elapsed) if elapsed else 0.0,
        "service_time": device.service_time,
        "throughput": device.tasks / elapsed if elapsed else 0.0,
        "details": dict(device.details),
    }


#: states in which there is nothing to be said of a device
_WELL = (DeviceState.READY, DeviceState.BUSY, DeviceState.DRAINING, DeviceState.REMOVED)


def trouble(device: DeviceStats) -> str:
    """What is wrong with a device, in one line; empty if nothing is."""
    said = []
    if device.state not in _WELL:
        said.append(f"{device.state} for {seconds(device.state_seconds)}")
    if device.failures:
        said.append(f"{device.failures} failures")
    if device.next_attempt is not None:
        said.append(f"next attempt in {seconds(device.next_attempt)}")
    if device.wedged:
        said.append(f"{device.wedged} calls left behind")
    if device.reason and device.state not in _WELL:
        said.append(device.reason)
    return ", ".join(said)


def remarks(devices: Iterable[DeviceStats]) -> Iterator[str]:
    """A line for each device that something is wrong with, and for each that rests."""
    for device in devices:
        if text := trouble(device):
            yield f"{device.name}: {text}"
        if device.rests is not None:
            yield f"{device.name} rests: {device.rests}"
