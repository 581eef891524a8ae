"""One ordered stream of digits over real devices, which are struck one after another.

    python tests/hardware/chaos.py --minutes 10

This host's torch in a thread and in a process, the emulated Cortex-M4 on a line that can be
disturbed, ``asyncinfer serve`` behind a network that can be cut, and an actor on each of two nodes
of a local Ray cluster. Beside the stream, ``asyncinfer run --resume`` meets Ctrl-C and a full disk.
Prints one JSON object; the exit status is 0 if every task ended once, in order and right, every
device came back in time, and the others went on at their pace meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import random
import signal
import sys
import time
from collections import Counter

from chaos_faults import KINDS, RUN
from chaos_jobs import Jobs
from chaos_judge import Episode, Lives, Tasks, processor_seconds
from chaos_report import report
from chaos_stage import ACTOR, NODE, Stage
from parts import Nodes

from asyncinfer import Dispatcher
from asyncinfer.options import Timeouts

#: seconds without faults: before the pace is taken, and between two of them
SETTLING, CALM = 2.0, (0.5, 3.0)
#: seconds between two looks at how many tasks are unfinished
LOOK = 0.05
#: seconds a device may take to come back until the run goes on without it
PATIENCE = 90.0


class Chaos:
    """One run over the devices of ``stage``."""

    def __init__(self, stage, kinds, *, seconds, seed, ahead):
        self.stage, self.kinds, self.seconds, self.seed = stage, kinds, seconds, seed
        self.ahead = ahead
        self.chance = random.Random(seed)
        self.tasks, self.lives = Tasks(stage.right), Lives()
        self.jobs = Jobs(random.Random(seed + 1), self.note)
        self.episodes, self.rates, self.processors = [], {}, {}
        self.problems = []
        self.over = False
        self.started = time.monotonic()

    def note(self, text):
        print(f"{time.monotonic() - self.started:7.1f} s  {text}", file=sys.stderr, flush=True)

    async def run(self):
        """All of it; what was found out."""
        self.note(f"seed {self.seed}; the devices are being opened")
        dispatcher = self.lives.dispatcher = Dispatcher(
            self.stage.drivers(),
            window=2048,
            retries=5,
            timeout=Timeouts(run=RUN),
            hedge=True,
            on_event=self.lives,
        )
        async with dispatcher, asyncio.TaskGroup() as group:
            beside = [group.create_task(self.stage.follow(dispatcher))] if self.stage.nodes else []
            await self._until_all_are_up(dispatcher)
            consuming = group.create_task(self._consume(dispatcher))
            jobs = group.create_task(self.jobs.run())
            await self._strike(dispatcher)
            self.over = True
            self.jobs.over.set()
            await jobs
            await asyncio.wait((consuming,), timeout=PATIENCE)
            for task in (consuming, *beside):
                task.cancel()
        return report(self)

    # ---- the stream

    async def _inputs(self):
        images = self.stage.images
        while not self.over:
            if self.tasks.submitted - self.lives.finished >= self.ahead:
                await asyncio.sleep(LOOK)
                continue
            yield images[self.tasks.submitted % len(images)]
            self.tasks.submitted += 1

    async def _consume(self, dispatcher):
        async with dispatcher.results(self._inputs()) as results:
            async for result in results:
                self.tasks.take(result)

    async def _until_all_are_up(self, dispatcher):
        """All devices are ready, or on trial."""
        names = set(self.stage.names)
        while names - {d.name for d in dispatcher.stats().devices if d.up}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    # ---- the faults

    async def _strike(self, dispatcher):
        end = time.monotonic() + self.seconds
        async with self._measured("healthy"):
            await self._take_rates()
        async with self._measured("struck"):
            for kind in self._rotation():
                await asyncio.sleep(self.chance.uniform(*CALM))
                if time.monotonic() > end:
                    return
                async with asyncio.timeout(PATIENCE):
                    await self._until_all_are_up(dispatcher)
                await self._one(kind)

    def _rotation(self):
        """Each kind once, in an order of its own, again and again."""
        while True:
            yield from self.chance.sample(self.kinds, len(self.kinds))

    async def _take_rates(self):
        await asyncio.sleep(SETTLING)
        before, began = Counter(self.tasks.by_device), time.monotonic()
        await asyncio.sleep(min(20.0, self.seconds / 10))
        took = time.monotonic() - began
        done = self.tasks.by_device - before
        self.rates = {name: done[name] / took for name in self.stage.names}
        told = ", ".join(f"{name} {rate:.1f}" for name, rate in self.rates.items())
        self.note(f"results/s while all are well: {told}")

    async def _one(self, name):
        """One fault, until its device has answered again."""
        kind, clock = KINDS[name], asyncio.get_running_loop().time
        before = self.lives.finished, self.tasks.delivered
        episode = Episode(name, kind.device, clock(), kind.noticed, before)
        self.lives.episode = episode
        self.note(f"{name}: {kind.device}")
        episode.over = await kind.strike(self.stage, self.chance)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await episode.answered.wait()
        self.lives.episode = None
        if not episode.back:
            (found,) = (d for d in self.lives.dispatcher.stats().devices if d.name == kind.device)
            state = f"it is {found.state}: {found.reason or found.rests}"
            self.problems.append(f"{kind.device} did not come back from {name}, {state}")
            episode.back = clock()
        self._judge(episode)

    def _judge(self, episode):
        others = sum(rate for name, rate in self.rates.items() if name != episode.device)
        finished, delivered = episode.before
        episode.finished = self.lives.finished - finished
        episode.delivered = self.tasks.delivered - delivered
        episode.healthy = others * (episode.back - episode.struck)
        episode.bound = self.lives.bound(episode)
        self.episodes.append(episode)
        share = episode.finished / max(1.0, episode.healthy)
        self.note(
            f"{episode.kind}: over after {episode.over - episode.struck:.2f} s, back "
            f"{episode.seconds:.2f} s later (bound {episode.bound:.2f} s); the stream ran at "
            f"{share:.2f} of the others' pace; {episode.troubles} troubles"
        )

    @contextlib.asynccontextmanager
    async def _measured(self, phase):
        """How many processors worked meanwhile."""
        worked, began = processor_seconds(), time.monotonic()
        yield
        self.processors[phase] = (processor_seconds() - worked) / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    most = "most unfinished tasks: all are run to their end, at some hundred a second"
    parser.add_argument("--ahead", type=float, default=math.inf, help=most)
    given = parser.parse_args()
    logging.getLogger("asyncinfer").setLevel(logging.ERROR)  # each loss is a warning
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # Ray forks, and gRPC says so each time
    on_ray = any(KINDS[kind].device in (ACTOR, NODE) for kind in given.kinds)

    async def run(nodes):
        async with Stage(nodes) as stage:
            seconds = given.minutes * 60
            options = {"seconds": seconds, "seed": given.seed, "ahead": given.ahead}
            return await Chaos(stage, given.kinds, **options).run()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell had it ignored
    try:
        with Nodes() if on_ray else contextlib.nullcontext() as nodes:
            facts = asyncio.run(run(nodes))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(json.dumps(facts))
    return 0 if facts["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
