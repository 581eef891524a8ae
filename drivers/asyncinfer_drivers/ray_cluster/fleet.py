"""Many drivers at once: one for each of n actors, or one for each node as nodes come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError, DeviceError
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.ray_cluster.driver import RayDriver
from asyncinfer_drivers.ray_cluster.nodes import Node, alive
from asyncinfer_drivers.ray_cluster.session import join

__all__ = ("follow", "ray_drivers")

logger = logging.getLogger("asyncinfer.ray")


class _Dispatcher(Protocol):
    async def add(self, driver: Any) -> None: ...
    async def remove(self, name: str, *, drain: bool = True) -> None: ...


def ray_drivers(count: int, model: Any, *, name: str = "ray", **options: Any) -> list[RayDriver]:
    """``count`` drivers of one actor each, called ``name-1`` and so on: the shape to prefer.

    The scheduler then knows each actor's pace, and the death of one is the loss of one. ``options``
    are ``RayDriver``'s. In a config, ``count = 100`` does the same.
    """
    return [RayDriver(model, name=f"{name}-{n}", **options) for n in range(1, count + 1)]


async def follow(
    dispatcher: _Dispatcher,
    driver: Callable[[Node], Driver[Any, Any] | None],
    *,
    address: str | None = None,
    interval: float = 1.0,
) -> None:
    """Keep a device for every node of the cluster: add it when the node joins, remove it after.

    ``driver(node)`` makes the driver, such as ``RayDriver(model, name=node.id[:8],
    placement=f"node:{node.id}")``, or returns ``None`` for a node to leave alone. Runs until it is
    cancelled: start it as a task beside the stream, in the same ``async with`` as the dispatcher.
    Looks every ``interval`` seconds; ``address`` is as for ``RayDriver``. Its devices stay with the
    dispatcher when it ends.

    A device that cannot be opened (``DeviceError``) is tried again at the next look; a
    ``ConfigError`` ends it. Raises ``DeviceLost`` if the cluster cannot be joined.
    """
    names = dict[str, str | None]()
    worker = Worker("ray nodes")
    worker.start()
    try:
        leave = await worker.run(join, "follow", address)
        try:
            while True:
                nodes = {node.id: node for node in await worker.run(alive)}
                await _forget_gone(dispatcher, names, nodes)
                await _add_new(dispatcher, driver, names, nodes)
                await asyncio.sleep(interval)
        finally:
            await worker.run(leave)
    finally:
        await worker.stop()


async def _forget_gone(
    dispatcher: _Dispatcher, names: dict[str, str | None], nodes: Mapping[str, Node]
) -> None:
    for gone in names.keys() - nodes.keys():
        name = names.pop(gone)
        if name is not None:
            logger.info("%s: its node has left the cluster", name)
            await dispatcher.remove(name, drain=False)


async def _add_new(
    dispatcher: _Dispatcher,
    driver: Callable[[Node], Driver[Any, Any] | None],
    names: dict[str, str | None],
    nodes: Mapping[str, Node],
) -> None:
    """Open the new nodes' devices, all at once."""

    wrong = list[ConfigError]()

    async def add(node: Node) -> None:
        try:
            made = driver(node)
            if made is not None:
                await dispatcher.add(made)
        except ConfigError as error:
            wrong.append(error)
        except DeviceError as error:
            logger.warning("node %s cannot be used yet: %s", node.id, error)
        else:
            names[node.id] = None if made is None else made.name

    async with asyncio.TaskGroup() as group:
        for new in nodes.keys() - names.keys():
            group.create_task(add(nodes[new]))
    if wrong:
        raise wrong[0]
