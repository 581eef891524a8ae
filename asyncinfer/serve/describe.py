"""The server and its models as the protocol describes them, over either transport."""

from __future__ import annotations

from typing import Any

from asyncinfer.serve.core import EXTENSIONS, Core
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.served import VERSION, Served
from asyncinfer.serve.tensors import TensorSpec

__all__ = ("config", "index", "server", "statistics")


def server(core: Core) -> dict[str, Any]:
    """The server's metadata."""
    return {"name": core.name, "version": core.version, "extensions": list(EXTENSIONS)}


def index(core: Core) -> list[dict[str, str]]:
    """All models, and whether they are ready."""
    return [
        {
            "name": served.name,
            "version": VERSION,
            "state": "READY" if served.ready else "UNAVAILABLE",
            "reason": "" if served.ready else "no device answers",
        }
        for served in core.models_open()
    ]


def config(served: Served, limits: Limits) -> dict[str, Any]:
    """A model as Triton configures one; its shapes are without the batch dimension."""
    return {
        "name": served.name,
        "platform": served.platform,
        "max_batch_size": limits.max_batch,
        "input": [_input(spec) for spec in served.inputs],
        "output": [_tensor(output) for output in served.outputs],
    }


def statistics(served: Served) -> dict[str, Any]:
    """A model's counters; an execution is a call of a device.

    All stages have the number of requests as their count: ``perf_analyzer`` takes no other.
    """
    counters = served.counters
    devices = served.stats.devices
    calls = sum(device.batches for device in devices)
    counters.share(sum(device.busy_seconds for device in devices), calls)
    stages = {
        name: {"count": counters.succeeded, "ns": int(1e9 * seconds)}
        for name, seconds in counters.stages.items()
    }
    return {
        "name": served.name,
        "version": VERSION,
        "last_inference": counters.last_ms,
        "inference_count": counters.rows,
        "execution_count": calls,
        "inference_stats": {
            "success": {"count": counters.succeeded, "ns": counters.succeeded_ns},
            "fail": {"count": counters.failed, "ns": counters.failed_ns},
            **stages,
        },
    }


def _input(spec: TensorSpec) -> dict[str, Any]:
    return _tensor(spec) | ({"optional": True} if spec.optional else {})


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{spec.datatype}",
        "dims": list(spec.shape),
    }
