"""What is done to real devices: each fault strikes one of them, and says when it was over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chaos_stage import ACTOR, BOARD, DELAY, NODE, REMOTE, WORKER, Stage

from asyncinfer_drivers.cortex_m.proxy import Faults
from asyncinfer_drivers.ray_cluster.nodes import alive

__all__ = ("KINDS", "RUN", "Kind")

#: seconds a call may take: the dispatcher's run timeout
RUN = 2.0


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    device: str
    #: strikes, and returns when the device could have been back
    strike: Callable[[Stage, random.Random], Awaitable[float]]
    #: documented seconds until the fault is noticed, where that counts
    noticed: float = 0.0


def _now():
    return asyncio.get_running_loop().time()


# ---- the server and the way to it


async def _server_killed(stage, chance):
    stage.server.kill()
    await asyncio.sleep(chance.uniform(0.0, 2.0))
    stage.server.start()
    while not await asyncio.to_thread(stage.server.ready):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return _now()


async def _server_stopped(stage, chance):
    return await _stopped(stage.server.process.pid, chance)


async def _network_cut(stage, chance):
    await stage.network.cut()
    await asyncio.sleep(chance.uniform(0.2, 4.0))
    await stage.network.plug()
    return _now()


async def _network_delayed(stage, chance):
    late = stage.network.delay = chance.uniform(0.2, 1.5)
    await asyncio.sleep(chance.uniform(2.0, 4.0))
    stage.network.delay = DELAY
    await asyncio.sleep(late)  # what is under way arrives late
    return _now()


# ---- the worker's process


async def _worker_killed(stage, chance):
    os.kill(_pid(stage), signal.SIGKILL)
    return _now()


async def _worker_stopped(stage, chance):
    return await _stopped(_pid(stage), chance)


async def _worker_out_of_memory(stage, chance):
    """It gets no more memory from the system, until it has ended or others have freed some."""
    pid, struck = _pid(stage), _now()
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, before[1]))
    await asyncio.sleep(chance.uniform(1.0, 3.0))
    if _pid(stage) != pid:
        return struck
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, before)
    return _now()


def _pid(stage):
    """Of the worker's process; ``None`` while there is none."""
    return getattr(stage.worker._session, "pid", None)


async def _stopped(pid, chance):
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(RUN + chance.uniform(0.5, 2.0))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return _now()


# ---- the board and its line


async def _board_restarted(stage, chance):
    await stage.board.kill()
    await asyncio.sleep(chance.uniform(0.1, 2.0))
    await stage.board.start()
    return _now()


async def _board_reset(stage, chance):
    struck = _now()
    await stage.board.reset()
    return struck


async def _line_corrupted(stage, chance):
    seed = chance.randrange(1 << 30)
    stage.board.proxy.disturb(Faults.mixed(chance.choice([0.001, 0.01, 0.1]), seed))
    await asyncio.sleep(chance.uniform(2.0, 5.0))
    stage.board.proxy.disturb(Faults())
    return _now()


# ---- the cluster


async def _actor_killed(stage, chance):
    os.kill(stage.where[ACTOR].pids[0], signal.SIGKILL)
    return _now()


async def _node_removed(stage, chance):
    place = stage.where[NODE].place
    (node,) = (node for node in stage.nodes.nodes if node.node_id == place)
    await asyncio.to_thread(stage.nodes.remove, node)
    while place in {one.id for one in await asyncio.to_thread(alive)}:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.to_thread(stage.nodes.add)
    return _now()


KINDS = {
    "server_killed": Kind(REMOTE, _server_killed),
    "server_stopped": Kind(REMOTE, _server_stopped),
    "network_cut": Kind(REMOTE, _network_cut),
    "network_delayed": Kind(REMOTE, _network_delayed),
    "worker_killed": Kind(WORKER, _worker_killed),
    "worker_stopped": Kind(WORKER, _worker_stopped),
    "worker_out_of_memory": Kind(WORKER, _worker_out_of_memory),
    "board_restarted": Kind(BOARD, _board_restarted),
    "board_reset": Kind(BOARD, _board_reset),
    # a frame that is lost is a call that hangs, until it is sent again or the run timeout ends it
    "line_corrupted": Kind(BOARD, _line_corrupted, noticed=RUN),
    "actor_killed": Kind(ACTOR, _actor_killed),
    "node_removed": Kind(NODE, _node_removed, noticed=1.0),
}
