"""The event loop, optional packages and the facts about devices that commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asyncinfer.bench.tools import optional, run_async

if TYPE_CHECKING:
    from asyncinfer.stats import DeviceStats

__all__ = ("device_facts", "optional", "run_async")


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
        "details": dict(device.details),
    }
