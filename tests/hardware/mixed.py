"""One ordered stream of digits over five unlike devices, three of which are struck down meanwhile.

    python tests/hardware/mixed.py --tasks 10000

This host's torch, the emulated Cortex-M4, ``asyncinfer serve`` in another process, and an actor on
each of two nodes of a local Ray cluster. On the way the server is killed and started again, one
actor is killed, and the other's node is removed. All but the board are slowed, so that the stream
takes long enough for devices to come back. Prints one JSON object; the exit status is 0 if every
result came once, in order, and was right.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter

from parts import Digits, Nodes, Server, labels

from asyncinfer import Dispatcher
from asyncinfer.config import DeviceConfig, select
from asyncinfer.model import builtin, resolve
from asyncinfer_drivers.ray_cluster import RayDriver

REMOTE, ACTOR, NODE = "raspberry_pi", "ray-1", "ray-2"
SLOWER = 20
#: part of the stream after which each is struck, and after which the server is started again
KILLED, RESTARTED, ACTOR_KILLED, NODE_REMOVED = 0.15, 0.3, 0.45, 0.6


class Mixed:
    """One run: what is done to the devices, and what came of the tasks."""

    def __init__(self, tasks, server, nodes):
        self.tasks, self.server, self.nodes = tasks, server, nodes
        self.model = builtin("digits")
        self.images = list(self.model.inputs().items)
        self.right = labels(self.model, self.images)
        self.found = Counter()
        self.by_device = Counter()
        self.struck, self.recovered = {}, {}
        self.strikes = {
            int(tasks * part): strike
            for part, strike in [
                (KILLED, self._kill_server),
                (RESTARTED, self._restart_server),
                (ACTOR_KILLED, self._kill_actor),
                (NODE_REMOVED, self._remove_node),
            ]
        }

    def drivers(self):
        """Five of them."""
        common = resolve("digits")
        host = DeviceConfig("torch", "cpu", {"slowdown": SLOWER, "threads": 1, "max_batch": 1})
        remote = {"url": f"127.0.0.1:{self.server.grpc}", "model": "digits"}
        local = [host, *select(["cortex_m4"]), DeviceConfig("open_inference", REMOTE, remote)]
        self.actors = [
            RayDriver(
                Digits,
                name=name,
                address=self.nodes.cluster.address,
                placement=f"node:{node.node_id}",
            )
            for name, node in zip((ACTOR, NODE), self.nodes.nodes, strict=True)
        ]
        drivers = [*(device.build(common) for device in local), *self.actors]
        for driver in drivers:
            driver.shares = ()  # they share this host, and yet each has to work
        return drivers

    # ---- what is done to them

    async def _kill_server(self):
        self._strike(REMOTE)
        self.server.kill()

    async def _restart_server(self):
        self.server.start()

    async def _kill_actor(self):
        self._strike(ACTOR)
        os.kill(self.actors[0].pids[0], signal.SIGKILL)

    async def _remove_node(self):
        self._strike(NODE)
        node = self.nodes.nodes[1]
        await asyncio.to_thread(self.nodes.remove, node)

    def _strike(self, device):
        self.struck[device] = time.perf_counter()

    def on_event(self, event):
        """Notes when a device that was struck is back."""
        if event.kind == "device.ready" and event.device in self.struck:
            took = time.perf_counter() - self.struck[event.device]
            self.recovered.setdefault(event.device, round(took, 2))

    # ---- the stream

    async def run(self):
        """All tasks; what is found out about them."""
        started = time.perf_counter()
        async with Dispatcher(
            self.drivers(), window=256, retries=5, on_event=self.on_event
        ) as dispatcher:
            await self._until_all_are_up(dispatcher)
            started = time.perf_counter()
            items = itertools.islice(itertools.cycle(self.images), self.tasks)
            async for result in dispatcher.results(items):
                self._take(result)
                if strike := self.strikes.get(self.found["results"]):
                    await strike()
            seconds = time.perf_counter() - started
            states = {device.name: device.state for device in dispatcher.stats().devices}
        return self._facts(seconds, states)

    async def _until_all_are_up(self, dispatcher):
        while any(d.state != "ready" for d in dispatcher.stats().devices):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def _take(self, result):
        self.found["unordered"] += result.index != self.found["results"]
        right = self.right[self.found["results"] % len(self.right)]
        self.found["failed"] += result.error is not None
        if result.device == "cortex_m4":  # INT8: its own answer for a few
            self.found["int8_differs"] += result.value != right
        else:
            self.found["wrong"] += result.error is None and result.value != right
        self.found["retried"] += result.attempts > 1
        self.found["results"] += 1
        self.by_device[result.device] += 1

    def _facts(self, seconds, states):
        kinds = ("results", "failed", "wrong", "unordered", "int8_differs", "retried")
        whole = self.found["results"] == self.tasks
        bad = any(self.found[kind] for kind in ("failed", "wrong", "unordered"))
        return {
            "tasks": self.tasks,
            **{kind: self.found[kind] for kind in kinds},
            "seconds": round(seconds, 2),
            "by_device": dict(self.by_device),
            "seconds_until_back": {name: self.recovered.get(name) for name in self.struck},
            "states_at_the_end": states,
            "ok": whole and not bad and self.found["int8_differs"] <= self.tasks / 100,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    with Nodes() as nodes, Server(SLOWER) as server:
        facts = asyncio.run(Mixed(tasks, server, nodes).run())
    print(json.dumps(facts))
    return 0 if facts["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
