"""The nodes of Ray clusters that are there: of ``RAY_ADDRESS``, this host, and the config.

They are asked for by a process of its own, which is killed when it takes too long: Ray's client
cannot be interrupted, and a process knows one cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from asyncinfer.errors import DeviceLost, DeviceTimeout
from asyncinfer_drivers.ray_cluster.session import existing

__all__ = ("leads",)

_PROGRAM = """
import json, sys
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
state = GlobalState()
state._initialize_global_state(GcsClientOptions.create(
    sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False))
print(json.dumps(state.node_table()))
"""


def leads(
    configured: Mapping[str, Mapping[str, Any]],
) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
    """By address, what asks for the nodes; no cluster is started, and none is joined."""
    given = [existing(), *(options.get("address") for options in configured.values())]
    addresses = dict.fromkeys(one for one in given if isinstance(one, str) and ":" in one)
    return {address: partial(_look, address) for address in addresses}


def _look(address: str, timeout: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", _PROGRAM, address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)  # noqa: S603  # our own program
    except subprocess.TimeoutExpired as error:
        text = f"no answer within {timeout:g} s; Ray itself takes a second or two: --timeout 10"
        raise DeviceTimeout(address, text) from error
    try:
        nodes = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise DeviceLost(address, "no Ray cluster answers there") from error
    return [_node(address, node) for node in nodes if node["Alive"]]


def _node(address: str, node: Mapping[str, Any]) -> dict[str, Any]:
    resources = node["Resources"]
    return {
        "name": f"node:{node['NodeID']}",
        "host": node["NodeManagerAddress"],
        "cluster": address,
        "resources": {key: resources[key] for key in ("CPU", "GPU") if key in resources},
    }
