"""Two dispatchers on two nodes of a Ray cluster share one stream; one node dies on the way.

No queue in the middle holds the work. Whoever wants the results cuts the stream into blocks and
hands them out; only references travel through here, the blocks through Ray's object store. Each
node has a dispatcher with devices of its own. The results are merged by the blocks' numbers.

A block whose dispatcher dies is handed to another. It may so be run twice, in whole or in part, but
its results are taken once: exactly-once holds for the results, not for the work.

    python examples/ray_partitions.py
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncinfer import Dispatcher
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.ray_cluster.session import join

#: tasks in a block: the unit of handing out, and of running again
BLOCK = 100
#: blocks a dispatcher has at once: one to work on, and the next
AHEAD = 2
TASKS = 5_000


def square(x: int) -> int:
    """What the devices compute: different for each task, so that no mix-up goes unseen."""
    return x * x


class Partition:
    """An actor with a dispatcher of its own: here over two simulated devices, one slower."""

    async def start(self) -> None:
        """Open its devices."""
        fast = SimulatedDriver("fast", 0.001, function=square, max_batch=4)
        slow = SimulatedDriver("slow", 0.010, function=square)
        self.dispatcher = await AsyncExitStack().enter_async_context(Dispatcher([fast, slow]))

    async def run(self, block: Sequence[Any]) -> list[Any]:
        """The block's outputs in order, and the errors of failed tasks in their places."""
        return [x async for x in self.dispatcher.stream(block, return_exceptions=True)]


class Merge:
    """Hands blocks to dispatchers, and gives their results back in order."""

    def __init__(self, partitions: dict[str, Any]) -> None:
        #: those alive, by name
        self.partitions = dict(partitions)
        #: blocks each has done, and blocks that were handed out again
        self.done, self.again = Counter[str](), 0
        self._cut = 0
        self._waiting = deque[tuple[int, Any]]()
        self._calls = dict[asyncio.Task[Any], tuple[str, int, Any]]()
        self._finished = dict[int, list[Any]]()

    async def stream(self, blocks: Iterable[Sequence[Any]]) -> AsyncGenerator[Any, None]:
        """The outputs of all blocks; memory is bounded by the number of dispatchers."""
        numbered, head = enumerate(blocks), 0
        try:
            while True:
                self._hand_out(numbered, head)
                if not self._calls:
                    break
                over, _ = await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
                for call in over:
                    self._take(call)
                while head in self._finished:
                    for output in self._finished.pop(head):
                        yield output
                    head += 1
        finally:
            for call in self._calls:
                call.cancel()
        if not self.partitions:
            raise RuntimeError(f"no dispatcher is left to run block {head}")

    def _hand_out(self, numbered: Iterable[tuple[int, Sequence[Any]]], head: int) -> None:
        busy = Counter(name for name, _, _ in self._calls.values())
        limit = head + 2 * AHEAD * len(self.partitions)  # a slow one holds up no more than this
        for _, name in itertools.product(range(AHEAD), self.partitions):
            if busy[name] == AHEAD:
                continue
            block = self._next(numbered, limit)
            if block is None:
                return
            busy[name] += 1
            call = asyncio.ensure_future(self._run(self.partitions[name], block[1]))
            self._calls[call] = (name, *block)

    def _next(
        self, numbered: Iterable[tuple[int, Sequence[Any]]], limit: int
    ) -> tuple[int, Any] | None:
        if not self._waiting and self._cut < limit:
            for number, items in itertools.islice(numbered, 1):
                self._cut = number + 1
                self._waiting.append((number, ray.put(items)))
        return self._waiting.popleft() if self._waiting else None

    async def _run(self, partition: Any, block: Any) -> list[Any]:
        outputs: list[Any] = await partition.run.remote(block)
        return outputs

    def _take(self, call: asyncio.Task[Any]) -> None:
        name, number, block = self._calls.pop(call)
        try:
            self._finished[number] = call.result()
            self.done[name] += 1
        except RayError as error:  # the actor or its node is gone: the block goes to another
            print(f"  block {number} comes back from {name}: {type(error).__name__}")
            self.partitions.pop(name, None)
            self.again += 1
            self._waiting.appendleft((number, block))
            self._waiting = deque(sorted(self._waiting, key=lambda waiting: waiting[0]))


async def main(cluster: Cluster, nodes: Sequence[Any]) -> None:
    """Run the stream, kill the second node halfway, count."""
    kind: Any = ray.remote(Partition)
    partitions = {}
    for number, node in enumerate(nodes, 1):
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        partitions[f"node-{number}"] = kind.options(scheduling_strategy=strategy).remote()
    await asyncio.gather(*(partition.start.remote() for partition in partitions.values()))
    merge, count, killing = Merge(partitions), 0, None
    blocks = (range(first, first + BLOCK) for first in range(0, TASKS, BLOCK))
    started = time.perf_counter()
    async with aclosing(merge.stream(blocks)) as results:
        async for output in results:
            assert output == square(count), f"{output} came in the place of {square(count)}"
            count += 1
            if count == TASKS // 4:
                print(f"{count} results: killing node-2")
                gone = asyncio.to_thread(cluster.remove_node, nodes[1], allow_graceful=False)
                killing = asyncio.ensure_future(gone)
    seconds = time.perf_counter() - started
    assert count == TASKS, f"{count} results for {TASKS} tasks"
    if killing:
        await killing
    print(f"{count} results in {seconds:.1f} s: lost 0, doubled 0, out of order 0")
    print(f"blocks of {BLOCK} done: {dict(merge.done)}; handed out again: {merge.again}")


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    logging.getLogger("ray").setLevel(logging.ERROR)
    head: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**27}
    # a node that cannot be reached is given up within 2 s; by default it took half a minute
    head["_system_config"] = {"health_check_period_ms": 300, "health_check_timeout_ms": 2000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.head_node, cluster.add_node(num_cpus=1, object_store_memory=2**27)]
        leave = join("partitions", cluster.address)  # as ray.init, but quiet
        asyncio.run(main(cluster, nodes))
        leave()
    finally:
        cluster.shutdown()
