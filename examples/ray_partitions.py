"""Two dispatchers on two nodes of a Ray cluster share one stream; one node dies on the way.

No queue in the middle holds the work. Each node has a dispatcher with devices of its own, and
beside it a Ray queue from which only this dispatcher takes its part of the stream. Whoever wants
the results cuts the stream into blocks and puts them into whichever queue has room; only references
go through the queues, the blocks through Ray's object store. The results are merged by the blocks'
numbers.

If a node dies, its queue dies with it. Nothing is lost: whoever put a block there keeps it until
its results have come, and puts it into another queue. A block may so be run twice, in whole or in
part, but its results are taken once: exactly-once holds for the results, not for the work.

    python examples/ray_partitions.py
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncinfer import Dispatcher
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.ray_cluster.session import join

#: tasks in a block: the unit of handing out, and of running again
BLOCK = 100
#: blocks of a dispatcher at once: one it works on, and the next
AHEAD = 2
TASKS = 5_000


def square(x: int) -> int:
    """What the devices compute: different for each task, so that no mix-up goes unseen."""
    return x * x


class Partition:
    """An actor with a queue and a dispatcher: here over two simulated devices, one slower."""

    async def start(self) -> Queue:
        """Open the devices; the queue, on this actor's node, is its own way to more work."""
        fast = SimulatedDriver("fast", 0.001, function=square, max_batch=4)
        slow = SimulatedDriver("slow", 0.010, function=square)
        self.dispatcher = await AsyncExitStack().enter_async_context(Dispatcher([fast, slow]))
        here = on(ray.get_runtime_context().get_node_id())
        self.queue = Queue(AHEAD, actor_options={"num_cpus": 0, "scheduling_strategy": here})
        return self.queue

    async def run_next(self) -> tuple[int, list[Any]]:
        """The next block's number, and its outputs in order; errors of failed tasks among them."""
        number, block = await self.queue.get_async()
        items = await block
        return number, [x async for x in self.dispatcher.stream(items, return_exceptions=True)]


class Merge:
    """Cuts a stream over the queues of dispatchers, and gives the results back in order."""

    def __init__(self, partitions: Mapping[str, tuple[Any, Queue]]) -> None:
        #: those alive, by name: the actor and its queue
        self.partitions = dict(partitions)
        #: blocks each has done, and blocks that were handed out again
        self.done, self.again = Counter[str](), 0
        self._cut = 0
        self._waiting = list[tuple[int, Any]]()  # a heap: the first block first
        self._given: dict[str, dict[int, Any]] = {name: {} for name in partitions}
        self._calls = dict[asyncio.Task[tuple[int, list[Any]]], str]()
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
        limit = head + 2 * AHEAD * len(self.partitions)  # a slow one holds up no more than this
        for _, name in itertools.product(range(AHEAD), self.partitions):
            given = self._given[name]
            if len(given) == AHEAD:
                continue
            if not self._waiting and self._cut < limit:
                for number, items in itertools.islice(numbered, 1):
                    self._cut = number + 1
                    self._waiting.append((number, ray.put(items)))
            if not self._waiting:
                return
            number, block = heapq.heappop(self._waiting)
            given[number] = block
            call = self._run(*self.partitions[name], number, block)
            self._calls[asyncio.ensure_future(call)] = name

    async def _run(
        self, actor: Any, queue: Queue, number: int, block: Any
    ) -> tuple[int, list[Any]]:
        """Put the block into the queue; the number and outputs of whichever was the next there."""
        await queue.put_async((number, block))
        result: tuple[int, list[Any]] = await actor.run_next.remote()
        return result

    def _take(self, call: asyncio.Task[tuple[int, list[Any]]]) -> None:
        name = self._calls.pop(call)
        given = self._given.get(name, {})
        try:
            number, outputs = call.result()
        except RayError as error:  # the actor or its node is gone: its blocks go to others
            self.partitions.pop(name, None)
            for number in self._given.pop(name, {}):
                print(f"  block {number} comes back from {name}: {type(error).__name__}")
                heapq.heappush(self._waiting, (number, given[number]))
                self.again += 1
        else:
            if given.pop(number, None) is not None:  # else it was handed out again
                self._finished[number] = outputs
                self.done[name] += 1


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """Nowhere but on that node."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


async def main(cluster: Cluster, nodes: Sequence[Any]) -> None:
    """Run the stream, kill the second node halfway, count."""
    kind: Any = ray.remote(Partition)
    actors = [kind.options(scheduling_strategy=on(node.node_id)).remote() for node in nodes]
    queues = await asyncio.gather(*(actor.start.remote() for actor in actors))
    names = [f"node-{number}" for number in range(1, 1 + len(nodes))]
    merge = Merge(dict(zip(names, zip(actors, queues, strict=True), strict=True)))
    count, killing = 0, None
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
