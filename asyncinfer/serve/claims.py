"""Whose a request is, and how urgent: what the dispatcher shares its devices by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from asyncinfer.options import LEAST_URGENT
from asyncinfer.serve.core import option
from asyncinfer.serve.errors import BadRequest

__all__ = ("Client", "client_at", "client_of_peer", "request_priority")

#: its address, and its connection; ``None`` if that is not known
Client: TypeAlias = tuple[str, str] | None


def client_at(address: tuple[str, int] | None) -> Client:
    """The client at the other end of an HTTP connection."""
    return None if address is None else (address[0], str(address[1]))


def client_of_peer(peer: str) -> Client:
    """The client that gRPC calls ``ipv4:10.0.0.1:52144``, or ``ipv6:%5B::1%5D:52144``."""
    kind, _, place = peer.partition(":")
    host, _, port = place.rpartition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    return host.replace("%5B", "").replace("%5D", "").strip("[]"), f"grpc {port}"


def request_priority(parameters: Mapping[str, Any]) -> int:
    """The parameter ``priority``: 1 is the most urgent, 0 stands for the default.

    Clients of Triton may have more levels: what is beyond the least urgent one counts as that.
    """
    priority = option(parameters, "priority", int, 0)
    if priority < 0:
        raise BadRequest("the parameter 'priority' must be 0 or more; 1 is the most urgent")
    return min(priority, LEAST_URGENT)
