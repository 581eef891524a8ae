"""The options of ``RayDriver``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncinfer_drivers._shared.options import StepOptions, TuningOptions
from asyncinfer_drivers._shared.sharing import SharingOptions

__all__ = ("ActorOptions", "RayOptions")


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """Which cluster, how many actors, and what each claims of it."""

    #: of the cluster's head, ``"host:port"``. Without one, it is the program's own connection if it
    #: has called ``ray.init``, that of ``RAY_ADDRESS``, a cluster that ``ray start`` has started on
    #: this host, or a local one: started by the first driver that opens, stopped by the last that
    #: closes. ``"local"`` always means the latter
    address: str | None = None
    #: actors that are one device together. If one dies, the device is lost: prefer
    #: ``ray_drivers``, which makes a device of every actor
    actors: int = 1
    #: cores that each actor claims
    num_cpus: float = 1
    #: GPUs that each actor claims
    num_gpus: float = 0
    #: what each actor claims of the cluster's own kinds of resources
    resources: Mapping[str, float] | None = None
    #: ``"SPREAD"``, ``"node:ID"`` with Ray's id of a node, or a scheduling strategy of ``ray.util``
    placement: Any = None
    #: Ray's way to bring the nodes what the model imports
    runtime_env: Mapping[str, Any] | None = None
    #: seconds ``open`` waits for the actors, whose resources an autoscaler may have to bring first
    open_timeout: float = 60.0
    #: seconds ``close`` waits for Ray, and for no call
    close_timeout: float = 10.0


@dataclass(frozen=True, kw_only=True)
class RayOptions(ActorOptions, TuningOptions, StepOptions, SharingOptions):
    """What ``RayDriver`` takes; those that ``TorchDriver`` takes too mean the same in the actor."""

    #: what to run; see ``RayDriver``
    model: Any = field(kw_only=False)
    #: the device's name
    name: str = "ray"
    #: tasks a call of ``infer`` takes at most; ``"auto"``, for torch models: the best there is
    max_batch: int | Literal["auto"] = 1
    #: ``infer`` calls accepted at once; by default ``2 * actors``: each actor runs one call, and
    #: another is on its way to it
    concurrency: int | None = None
    #: the torch device in the actor; by default ``"auto"`` with ``num_gpus``, else ``"cpu"``
    device: str | None = None
    #: intra-op threads of torch in the actor; by default ``num_cpus``, at least 1
    threads: int | None = None
