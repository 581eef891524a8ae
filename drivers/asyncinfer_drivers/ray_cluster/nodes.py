"""The nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ray

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers.ray_cluster.session import existing, join

__all__ = ("Node", "alive", "found")


class Node(NamedTuple):
    """A node of the cluster."""

    #: Ray's id: ``RayDriver(placement=f"node:{node.id}")``
    id: str
    #: its address
    host: str
    #: what it has in all: ``CPU``, ``GPU`` and others
    resources: Mapping[str, float]

    def __str__(self) -> str:
        units = (
            f"{self.resources[key]:g} {key}" for key in ("CPU", "GPU") if key in self.resources
        )
        return ", ".join([f"Ray node at {self.host}", *units])


def alive() -> list[Node]:
    """Those that are up; blocks. ``DeviceLost`` if the cluster does not answer."""
    try:
        nodes: Any = ray.nodes  # it has no types
        found: list[dict[str, Any]] = nodes()
    except Exception as error:
        raise DeviceLost("ray nodes", f"the cluster does not answer: {error}") from error
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
        for node in found
        if node["Alive"]
    ]


def found() -> list[Node]:
    """Those of the cluster there is without being told an address; blocks for seconds."""
    address = existing()
    if address is None:
        return []
    leave = join("ray", address)
    try:
        return alive()
    finally:
        leave()
