"""The actor: a process somewhere in the cluster that runs one model."""

from __future__ import annotations

import asyncio
import os
from typing import Any, NamedTuple

import ray
from ray import cloudpickle

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.session import Host
from asyncinfer_drivers._shared.worker import as_exception, portable
from asyncinfer_drivers.ray_cluster.host import Order, host_of
from asyncinfer_drivers.ray_cluster.parcel import Parcel, pack, unpack

__all__ = ("Answer", "Loaded", "ModelActor", "own_address")


class Answer(NamedTuple):
    """What an actor's method returns: a value, or the error it raised."""

    value: Any
    error: Exception | None = None


class Loaded(NamedTuple):
    """What an actor tells of itself once its model is ready."""

    warmup: Any
    max_batch: int
    details: dict[str, str | float]
    #: Ray's id of the node it is on
    node: str
    #: that node's address
    address: str
    pid: int


class ModelActor:
    """Runs one model in a thread, so that its event loop can take, answer and cancel calls.

    Its methods return an ``Answer`` and raise nothing: an exception of the user's own type may be
    unknown to the other side.
    """

    def __init__(self) -> None:
        self._host: Host | None = None

    async def load(self, order: bytes) -> Answer:
        """Make the model ready; ``order`` is a pickled ``Order``. Answers with ``Loaded``."""
        try:
            host = await asyncio.to_thread(lambda: host_of(_unpickled(order)))
            await host.open()
        except Exception as error:
            return Answer(None, portable(error))
        self._host = host
        where = ray.get_runtime_context().get_node_id(), own_address()
        details = dict(host.details)
        return Answer(Loaded(host.warmup, host.max_batch, details, *where, os.getpid()))

    async def run(self, parcel: Parcel) -> Answer:
        """One output per input, or the exception that is its own fault."""
        try:
            outputs = await self._ready.run(unpack(parcel))
        except Exception as error:
            return Answer(None, portable(error))
        return Answer(pack([portable(as_exception(o)) if _failed(o) else o for o in outputs]))

    async def probe(self) -> Answer:
        """Whether it can compute."""
        try:
            await self._ready.probe()
        except Exception as error:
            return Answer(None, portable(error))
        return Answer(None)

    @property
    def _ready(self) -> Host:
        assert self._host is not None  # noqa: S101  # the driver calls nothing else before ``load`` has ended
        return self._host


def own_address() -> str:
    """The address of the node that this process is on."""
    address: Any = ray.util.get_node_ip_address  # it has no types
    return str(address())


def _failed(output: Any) -> bool:
    return isinstance(output, BaseException)


def _unpickled(order: bytes) -> Order:
    try:
        loaded: Order = cloudpickle.loads(order)
    except Exception as error:
        raise ConfigError(
            "a node of the cluster cannot import what the model, a step or the warm-up input "
            f"needs: {type(error).__name__}: {error}; install it there, or give runtime_env"
        ) from error
    return loaded
