"""This process's connection to a Ray cluster: one, shared by all its drivers."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._shared.worker import as_exception

__all__ = ("existing", "join")

logger = logging.getLogger("asyncinfer.ray")

#: seconds to wait for a cluster's port before asking Ray, which would go on trying for a minute
_CONNECT_TIMEOUT = 5.0

_lock = threading.Lock()
_current: _Connection | None = None


def join(name: str, address: str | None) -> Callable[[], None]:
    """Connect to the cluster, or count in on the connection there is; returns what leaves it.

    ``address`` is ``host:port``, ``"local"`` for a cluster of our own, or ``None``: that of
    ``RAY_ADDRESS``, or of a cluster that ``ray start`` has started on this host, or else a local
    one, which we start. Without an address the connection there is will do, and if the program has
    called ``ray.init`` itself, that one is used.

    Both block: call them in a thread. The last to leave ends the connection, and the cluster if it
    is ours. ``name`` is the device's, for errors: ``DeviceLost`` if nobody answers at the address,
    ``ConfigError`` if this process is connected to another cluster.
    """
    global _current
    with _lock:
        if _current is None:
            if ray.is_initialized():
                return _theirs
            _current = _Connection(name, address)
        connection = _current
        if address not in (None, connection.address):
            raise ConfigError(
                f"{name}: a process has one Ray cluster, and this one is connected to "
                f"{connection.address}, not {address}: give all its drivers one address"
            )
        connection.users += 1
        return _once(connection)


def existing() -> str | None:
    """The cluster that ``join`` would find without an address, or ``None``."""
    if _current is not None:
        return _current.address
    return os.environ.get("RAY_ADDRESS") or _started_here()


def _theirs() -> None:
    """The program's own connection is left as it is."""


def _once(connection: _Connection) -> Callable[[], None]:
    left = threading.Event()

    def leave() -> None:
        global _current
        with _lock:
            if left.is_set():
                return
            left.set()
            connection.users -= 1
            if not connection.users:
                _current = None
                connection.end()

    return leave


class _Connection:
    """Made and ended by a thread of its own: Ray's processes end with the thread they are from."""

    def __init__(self, name: str, address: str | None) -> None:
        self.address = address or existing() or "local"
        self.users = 0
        self._error: Exception | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._hold, args=(name,), name="asyncinfer-ray", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def end(self) -> None:
        """Leave the cluster; stop it if it is ours."""
        self._over.set()
        self._thread.join()

    def _hold(self, name: str) -> None:
        try:
            _connect(name, self.address)
        except BaseException as error:
            self._error = as_exception(error)
        self._ready.set()
        if self._error is None:
            self._over.wait()
            ray.shutdown()


def _connect(name: str, address: str) -> None:
    ours = address == "local"
    if address.startswith("ray://"):
        raise ConfigError(
            f"{name}: {address} is Ray Client's, which shares no memory with the actors: run on a "
            "node of the cluster, and give its host:port, which `ray status` shows"
        )
    if not ours and (why := _silent(address)):
        raise DeviceLost(name, f"no Ray cluster at {address}: {why}")
    # Actors' prints do not belong on this program's output; Ray's log files have them.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _mute()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if ours:
            logger.info("%s: starting a local Ray cluster", name)
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise DeviceLost(name, f"cannot join the Ray cluster at {address}: {error}") from error


def _mute() -> None:
    """Ray prints the cluster's troubles on standard output, which is the program's own.

    No option stops that. Its actors' deaths reach the program as ``DeviceLost``.
    """
    from ray._private import ray_logging

    ray_logging.stdout_deduplicator.skip_re = re.compile("")


def is_here(address: str | None) -> bool:
    """Whether the address, as a driver takes it, is of a cluster that this host has a part in."""
    if address in (None, "", "auto", "local"):
        return True
    host = str(address).rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _started_here() -> str | None:
    """The address of what ``ray start`` has started on this host, if that still answers."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return None if _silent(address) else address


def _silent(address: str) -> str:
    """Why nobody answers at ``host:port``; empty if somebody does."""
    if address == "auto":
        return "" if _started_here() else "none was started on this host"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT).close()
    except ValueError:
        return "write host:port"
    except OSError as error:
        return error.strerror or str(error)
    return ""
