"""Rounds of loads over all peers, each started afresh, within a stated time."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asyncinfer.bench.peers.loads import Load, poisson
from asyncinfer.bench.peers.peer import SCRIPTS, Peer
from asyncinfer.bench.peers.running import PeerFailed, Running, started

__all__ = ("IN_FLIGHT", "Measured", "Plan", "Session", "prepare")

#: requests under way at once in closed loops
IN_FLIGHT = 64
#: parts of a peer's capacity at which requests arrive in open loops
PARTS = (0.2, 0.5, 0.8, 0.95)
#: most images of one stream
_STREAM = 50_000


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    #: nets by the names that ``scripts/prepare.py`` knows
    models: Sequence[str]
    #: times that every peer is started for each model
    rounds: int
    #: seconds of each load
    warm_up: float
    closed: float
    opened: float
    stream: float
    #: seconds for all of it: what would go beyond is left out
    budget: float
    seed: int


@dataclass(frozen=True)
class Measured:
    """One load on one start of one peer."""

    peer: str
    model: str
    #: "closed", "stream", or of open loops their rate: "20 %", "equal 1"
    load: str
    round: int
    result: Load
    startup: float
    #: requests a second that arrived, in open loops
    rate: float = 0.0
    #: most memory that the peer's processes held, in bytes
    peak_rss: float = 0.0
    #: CPU seconds that they took for one image; without those of an HTTP client
    cpu: float = math.nan
    versions: dict[str, str] = field(default_factory=dict)


async def prepare(model: str, folder: Path, workers: int) -> None:
    """Write the model and its images in another process, which then frees all that it took.

    Raises ``PeerFailed`` with the last line of its output.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        SCRIPTS / "prepare.py",
        model,
        str(folder),
        str(workers),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines() or ["no output"]
        raise PeerFailed(f"cannot prepare {model}: {lines[-1]}")


class Session:
    """All that is measured: ``measured`` grows, ``skipped`` says what could not be."""

    def __init__(self, plan: Plan, peers: Sequence[Peer], say: Callable[[str], None]) -> None:
        self.measured: list[Measured] = []
        self.skipped: list[str] = []
        self._plan = plan
        self._peers = list(peers)
        self._say = say
        self._deadline = 0.0
        #: seconds that the last start of each, loads included, took
        self._costs: dict[tuple[str, str], float] = {}
        #: what failed for a model is not tried with it again
        self._failed: set[tuple[str, str]] = set()
        #: rates of arrival that are the same for all, by model
        self._equal: dict[str, list[float]] = {}

    async def run(self, folders: dict[str, Path]) -> None:
        """All rounds, in turns; every other one backwards. Stops when the time is used up.

        Own rates of arrival are measured in the first round, equal ones, which take all peers'
        capacities, in the second. From then on only those that start fast take part.
        """
        self._deadline = time.perf_counter() + self._plan.budget
        for round_number in range(1, self._plan.rounds + 1):
            peers = self._taking_part(round_number)
            if not peers:
                self.skipped.append(
                    f"rounds {round_number} to {self._plan.rounds}: the {self._plan.budget:.0f} s "
                    f"for this suite allow {round_number - 1}"
                )
                return
            for model, folder in folders.items():
                for peer in peers:
                    await self._one(peer, model, folder, round_number)

    def capacity(self, peer: str, model: str) -> float:
        """Median images a second of a peer's closed loops so far; 0 if there was none."""
        rates = [
            one.result.throughput
            for one in self.measured
            if (one.peer, one.model, one.load) == (peer, model, "closed")
        ]
        return statistics.median(rates) if rates else 0.0

    def equal_rates(self, model: str) -> list[float]:
        """Half of the slowest peer's capacity, and half of the fastest server's."""
        known = {peer.name: self.capacity(peer.name, model) for peer in self._peers}
        servers = [known[peer.name] for peer in self._peers if peer.request and known[peer.name]]
        every = [rate for rate in known.values() if rate]
        return [min(every) / 2, max(servers, default=min(every)) / 2] if every else []

    def _taking_part(self, round_number: int) -> list[Peer]:
        """All peers twice, then those that start fast; only these, or none, if time is short."""
        fast = [peer for peer in self._peers if peer.fast]
        choices = [self._peers, fast] if round_number <= 2 else [fast]
        fitting = (peers for peers in choices if round_number == 1 or self._fit(peers))
        return next(fitting, [])[:: 1 if round_number % 2 else -1]

    def _fit(self, peers: Sequence[Peer]) -> bool:
        """Whether a round of them is likely to end in time."""
        names = [peer.name for peer in peers]
        expected = sum(cost for (name, _), cost in self._costs.items() if name in names)
        return time.perf_counter() + expected < self._deadline

    async def _one(self, peer: Peer, model: str, folder: Path, round_number: int) -> None:
        begun = time.perf_counter()
        if (peer.name, model) in self._failed:
            return
        if begun > self._deadline:
            self.skipped.append(f"{peer.name}, {model}, round {round_number}: no time left")
            return
        self._say(f"{model}, round {round_number}: {peer.name}")
        try:
            async with started(peer, folder) as running:
                await self._load(running, model, round_number)
        except PeerFailed as error:
            self.skipped.append(f"{model}: {error}")
            self._failed.add((peer.name, model))
        self._costs[peer.name, model] = time.perf_counter() - begun

    async def _load(self, running: Running, model: str, round_number: int) -> None:
        plan, name = self._plan, running.peer.name

        def record(load: str, result: Load, rate: float = 0.0, cpu: float = math.nan) -> None:
            times = (running.startup, rate, running.family.peak_rss(), cpu, running.versions)
            self.measured.append(Measured(name, model, load, round_number, result, *times))

        await running.closed_loop(in_flight=IN_FLIGHT, seconds=plan.warm_up)
        before = running.family.cpu_seconds()
        found = await running.closed_loop(in_flight=IN_FLIGHT, seconds=plan.closed)
        spent = running.family.cpu_seconds() - before
        record("closed", found, cpu=spent / found.finished if found.finished else math.nan)
        if running.client is None and plan.stream:
            tasks = min(_STREAM, max(IN_FLIGHT, int(found.throughput * plan.stream)))
            record("stream", await running.stream(tasks))
        for load, rate in self._rates(name, model, round_number) if plan.opened else ():
            arrivals = poisson(rate, plan.opened, plan.seed)
            record(load, await running.open_loop(arrivals), rate)

    def _rates(self, name: str, model: str, round_number: int) -> list[tuple[str, float]]:
        """The open loops of this round, with their requests a second."""
        capacity = self.capacity(name, model)
        if round_number == 1:
            return [(f"{part:.0%}", part * capacity) for part in PARTS if capacity]
        if model not in self._equal and round_number == 2:
            self._equal[model] = self.equal_rates(model)
        equal = enumerate(self._equal[model] if round_number == 2 else (), 1)
        return [(f"equal {number}", rate) for number, rate in equal if rate < capacity]
