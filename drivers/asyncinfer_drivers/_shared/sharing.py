"""What a device shares with others: what its driver knows, unless it is told otherwise."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from asyncinfer.driver import THIS_HOST, Driver, shared_names

__all__ = ("SharingDriver", "SharingOptions", "host_at")


@dataclass(frozen=True, kw_only=True)
class SharingOptions:
    """What the device shares with others."""

    #: names of what the device shares with others, so that they may slow one another; one text is
    #: one name. By default as docs/devices.md says of the driver; ``[]`` means nothing
    shares: str | Collection[str] | None = None


class SharingDriver(Driver[Any, Any]):
    """A driver that knows what its device shares, unless it is told otherwise."""

    _shares: frozenset[str] | None = None

    @property
    def shares(self) -> frozenset[str]:
        """Names of what the device shares with others; setting ``None`` brings the default back."""
        return self._usually_shared() if self._shares is None else self._shares

    @shares.setter
    def shares(self, names: str | Collection[str] | None) -> None:
        self._shares = None if names is None else shared_names(names, f"device {self.name!r}")

    def _usually_shared(self) -> frozenset[str]:
        """What the device shares, as far as that is known by now."""
        return frozenset()


def host_at(address: str) -> str:
    """The name under which the processors of the host at an address, without a port, are shared."""
    name = address.strip("[]").partition("%")[0].rstrip(".").lower()
    return THIS_HOST if _is_here(name) else f"host:{name}"


def _is_here(name: str) -> bool:
    try:
        ip = ipaddress.ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return name in ("localhost", own, f"{own}.local") or name.endswith(".localhost")
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified
