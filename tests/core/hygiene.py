"""A million tasks of which one in a hundred fails, and what is left of them: nothing.

    python tests/core/hygiene.py --tasks 1000000

On the virtual clock, with tasks that fail in every way, devices that are lost, copies, an event
hook, streams and calls that are given up. The last line is one JSON object. The exit status is 1
if memory grows with the number of tasks, or a task, thread or file is left at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import math
import resource
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from asyncinfer import Dispatcher, Hedge, Timeouts
from asyncinfer.errors import DeviceLost, InputError, ProtocolError, TaskError
from asyncinfer.events import Event
from asyncinfer.testing import SimulatedDriver, run_virtual

#: most by which resident memory may grow, in bytes
MOST_BYTES = 4 * 2**20
#: and most by which the least that Python has of its own in the second half of the work, in
#: blocks, may be more than in the first: what the dispatcher remembers of its last tasks varies
MOST_BLOCKS = 3_000
#: tasks of one part, and parts of one round: each is read in another way
PART, PARTS = 5_000, 4
ROUND = PART * PARTS
#: calls beside it, half of which are given up
CALLS = 400
#: rounds until everything that is bounded is as large as it gets
WARM = 2
#: seconds a task may take, and how long one that hangs would
TOTAL, FOREVER = 5.0, 1e4

FAILURES = ("model", "model", "model", "in place", "in place", "input", "input", "once", "hang")


def fate(x: int) -> str:
    """What goes wrong with an input: with one in a hundred, something does."""
    return FAILURES[x // 100 % len(FAILURES)] if x % 100 == 42 else ""


class Device(SimulatedDriver):
    """Fails with some inputs, stalls now and then, and is lost every so many calls."""

    def __init__(self, name: str, seconds: float, *, lost: float = math.inf, **options: Any):
        super().__init__(name, seconds, **options)
        self.calls, self.lost = 0, lost

    async def infer(self, batch: Sequence[int]) -> Sequence[Any]:
        self.calls += 1
        if self.calls % self.lost == self.lost - 1:
            raise (DeviceLost if self.calls % 2 else ProtocolError)(self.name, "is lost")
        if self.calls % 1000 == 0:  # so that a copy is made
            await asyncio.sleep(50 * self.service_time)
        outputs = list(await super().infer(batch))
        for at, x in enumerate(batch):
            kind = fate(x)
            if kind == "model":
                raise ValueError(f"the model raises on {x}")
            if kind == "input":
                raise InputError(f"a bad input: {x}")
            if kind == "in place":
                outputs[at] = ValueError(f"in the place of {x}")
            elif kind == "once" and self.name == "first":
                outputs[at] = ValueError(f"not here: {x}")
            elif kind == "hang":
                await asyncio.sleep(FOREVER)
        return outputs


def devices() -> list[Device]:
    """Unlike ones."""
    return [
        Device("first", 0.001),
        Device("several", 0.002, concurrency=3, lost=4999),
        Device("batches", 0.0005, batch_cost=0.001, max_batch=16),
        Device("quick", 0.00005),
        *(Device(f"lost {calls}", 0.001, lost=calls) for calls in (7, 97, 211)),
    ]


class Job:
    """All the work, with what it takes of the machine after each of its rounds."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.ended = 0
        self.errors: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        #: resident bytes, and blocks, after each round once it is warm
        self.bytes: list[int] = []
        self.blocks: list[int] = []

    async def run(self) -> dict[str, Any]:
        """Do it, and say what came of it."""
        options: dict[str, Any] = {"window": 256, "queue_size": 64, "hedge": Hedge(budget=0.2)}
        d = Dispatcher(
            devices(), timeout=Timeouts(total=TOTAL, run=None), on_event=self.note, **options
        )
        async with d:
            for first in range(0, self.tasks, PART):
                await self.part(d, first // PART % PARTS, range(first, first + PART))
                if (first + PART) % ROUND == 0 and first + PART >= WARM * ROUND:
                    await asyncio.sleep(10 * TOTAL)  # devices that were lost are back
                    self.measure()
        stats = d.stats()
        return {
            "submitted": stats.submitted,
            "dropped": stats.submitted - stats.finished,
            "failed": stats.failed,
            "retried": stats.retried,
            "copies": stats.hedging.started,
        }

    def note(self, event: Event) -> None:
        """The event hook."""
        self.events[event.kind] += 1

    def measure(self) -> None:
        """Look at what is used, with no garbage in it."""
        gc.collect()
        self.blocks.append(sys.getallocatedblocks())
        self.bytes.append(resident())

    async def part(self, d: Dispatcher[int, Any], number: int, xs: range) -> None:
        """One stream, read in one of several ways, and some calls beside it."""
        async with asyncio.TaskGroup() as group:
            for x in xs[:CALLS]:
                group.create_task(self.call(d, x, None if x % 2 else 0.0005))
            if number == 0:
                await self.consume(d.results(xs))
            elif number == 1:
                await self.consume(d.results(xs, ordered=False))
            elif number == 2:
                await self.raising(d, xs)
            else:
                await self.left(d, xs)

    async def call(self, d: Dispatcher[int, Any], x: int, patience: float | None) -> None:
        with suppress(TimeoutError, TaskError):
            async with asyncio.timeout(patience):
                await d.infer(x)

    async def consume(self, results: Any) -> None:
        async for result in results:
            self.ended += 1
            if result.error is not None:
                self.errors[type(result.error).__name__] += 1

    async def raising(self, d: Dispatcher[int, Any], xs: range) -> None:
        stream = d.stream(iter(xs))
        while True:
            try:
                await anext(stream)
            except TaskError as error:
                self.errors[type(error).__name__] += 1
            except StopAsyncIteration:
                return
            self.ended += 1

    async def left(self, d: Dispatcher[int, Any], xs: range) -> None:
        """Read by several streams, which are left before their ends."""
        rest = iter(xs)
        while True:
            async with d.stream(rest, return_exceptions=True) as stream:
                before = self.ended
                async for _ in stream:
                    self.ended += 1
                    if self.ended - before == PART // 4:
                        break
                else:
                    return


def resident() -> int:
    """Bytes of memory in use."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the most there ever was, on macOS


def files() -> int:
    """Open ones."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def watched(job: Job) -> dict[str, Any]:
    """Run the job; look at the asyncio tasks that are left."""
    facts = await job.run()
    await asyncio.sleep(0)
    names = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return facts | {"left_tasks": len(names)}


def judged(job: Job, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, and whether they are as they should be."""
    half = len(job.blocks) // 2
    grown = min(job.blocks[half:]) - min(job.blocks[:half])
    peak = max(job.bytes) - job.bytes[0]
    left = facts["left_tasks"] + facts["left_threads"] + facts["left_files"]
    facts = {
        "tasks": job.tasks,
        "errors": dict(job.errors),
        "lost": job.events["device.lost"],
        "rss_before": job.bytes[0],
        "rss_after": job.bytes[-1],
        "rss_peak_growth": peak,
        "blocks_before": job.blocks[0],
        "blocks_growth": grown,
        **facts,
    }
    return facts | {"well": peak <= MOST_BYTES and grown <= MOST_BLOCKS and left == 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000, help=f"a multiple of {ROUND}")
    options = parser.parse_args(arguments)
    logging.disable()  # each device that is lost, and each task that has failed, is told of
    before = files(), threading.active_count()
    job = Job(max(-(-options.tasks // ROUND), WARM + 1) * ROUND)
    facts = run_virtual(watched(job))
    gc.collect()
    facts["left_files"] = files() - before[0]
    facts["left_threads"] = threading.active_count() - before[1]
    facts = judged(job, facts)
    print(json.dumps(facts))
    return 0 if facts["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
