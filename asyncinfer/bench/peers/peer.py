"""What a peer is: a script, the packages it needs, and how its requests look."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asyncinfer.bench.peers.client import encode

__all__ = ("CEILING", "OURS", "OURS_HTTP", "PEERS", "Peer", "home", "raw")

#: folder of the scripts
SCRIPTS = Path(__file__).with_name("scripts")

#: environment variable that names the folder of the environments
HOME = "ASYNCINFER_PEERS"


def home() -> Path:
    """Where the environments are: ``$ASYNCINFER_PEERS``, or in the user's cache directory."""
    if named := os.environ.get(HOME):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "asyncinfer" / "peers"


def raw(image: bytes) -> bytes:
    """The image itself as the body."""
    return encode("/", image, "application/octet-stream")


def _mosec(image: bytes) -> bytes:
    return encode("/inference", image, "application/octet-stream")


def _litserve(image: bytes) -> bytes:
    text = base64.b64encode(image).decode()
    return encode("/predict", json.dumps({"image": text}).encode(), "application/json")


@dataclass(frozen=True)
class Peer:
    """One way to serve the model."""

    #: as tables show it
    name: str
    #: file in ``scripts``, or a whole path
    script: str | Path
    #: virtual environment; empty for this interpreter's own
    environment: str = ""
    #: what is installed into it, beside torch
    requirements: tuple[str, ...] = ()
    #: from an image to a request, if it is an HTTP server; else it loads itself
    request: Callable[[bytes], bytes] | None = None
    #: modules of this interpreter's environment that it needs
    modules: tuple[str, ...] = ()
    #: the settings that it runs with, for people
    settings: str = ""
    #: seconds it may take to start
    patience: float = 60.0
    #: seconds it gets to end by itself, and tidy up, before it is told to by signals
    farewell: float = 1.0
    #: whether it starts fast enough for the short form and for many rounds
    fast: bool = False

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        if not self.environment:
            return Path(sys.executable)
        return home() / self.environment / "bin" / "python"

    @property
    def path(self) -> Path:
        """The file that is run."""
        return SCRIPTS / self.script


OURS = Peer(
    "asyncinfer",
    "ours.py",
    modules=("torch",),
    settings="in process; 2 TorchDrivers of 1 thread, max_batch 32",
    fast=True,
)

OURS_HTTP = Peer(
    "asyncinfer HTTP",
    "ours_http.py",
    request=raw,
    modules=("torch", "starlette", "uvicorn"),
    settings="the same behind Starlette on one uvicorn process, gc.freeze, raw bytes",
    fast=True,
)

#: not a peer: what the client can do with a server that computes nothing
CEILING = Peer("the client alone", "echo.py", request=raw)

PEERS = (
    Peer(
        "mosec",
        "mosec_server.py",
        "mosec",
        ("mosec==0.9.8",),
        _mosec,
        settings="2 worker processes, max_batch_size 32, max_wait_time 1 ms, raw bytes",
        fast=True,
    ),
    Peer(
        "LitServe",
        "litserve_server.py",
        "litserve",
        ("litserve==0.2.19",),
        _litserve,
        settings="2 workers, max_batch_size 32, batch_timeout 2 ms, fast_queue, base64 in JSON",
        fast=True,
    ),
    Peer(
        "Ray Serve",
        "ray_serve.py",
        "ray",
        ("ray[serve]==2.60.0",),
        raw,
        settings="2 replicas, serve.batch of 32, 1 ms, RAY_SERVE_THROUGHPUT_OPTIMIZED, raw bytes",
        farewell=8,
    ),
    Peer(
        "Ray ActorPool",
        "ray_pool.py",
        "ray",
        ("ray[serve]==2.60.0",),
        settings="2 actors; streams in chunks of 32",
        farewell=8,
    ),
    Peer(
        "Dask",
        "dask_map.py",
        "dask",
        ("distributed==2026.8.0", "dask==2026.8.0"),
        settings="LocalCluster of 2 processes, asynchronous client; streams in chunks of 32",
        farewell=8,
    ),
)
