"""Made-up hosts on a virtual clock: what is found of what the best set of devices would do."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import random
import statistics
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from asyncinfer.bench.machine import machine
from asyncinfer.bench.plots import dots
from asyncinfer.bench.record import Check, Outcome, Plot, Run, Table
from asyncinfer.bench.simulated.checks import worst
from asyncinfer.bench.simulated.hosts import Place, Sharing, sharings
from asyncinfer.bench.simulated.lab import begin_worker
from asyncinfer.bench.suite import Context
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.testing import SimulatedDriver, SimulatedHost, run_virtual

__all__ = ("Figures", "Kind", "Plan", "checks", "hosts", "plans", "simulated")

TASKS = 20_000
#: hosts of each kind, and in the short form
MANY, FEW = 12, 2
#: ranges that are drawn from: evenly, times and cores wanted by their logarithms
DEVICES, TIMES, WANTED = (2, 8), (0.002, 0.2), (0.05, 2.0)
CORES, CONTENTION, NOISE = (1.0, 4.0), (0.0, 0.2), 0.3
#: after a change of the host: so many times the slowest device's time until it is measured, and
#: until the measurement ends
SOON, LATER = 100, 200
#: hosts that would need more tasks for that are not drawn
MOST_TASKS = 60_000
#: what is demanded in the worst case
SECOND_HALF, SECOND_HALF_NOISY, MEDIAN, WHOLE = 0.95, 0.93, 0.98, 0.92
INDEPENDENT, CLAIMED = 0.995, 0.98

_NOTE = (
    "Simulated devices on a virtual clock, {devices[0]} to {devices[1]} on a host of its own, each "
    "host drawn by chance: {times[0]:g} to {times[1]:g} s a task, wanting {wanted[0]:g} to "
    "{wanted[1]:g} of {cores[0]:g} to {cores[1]:g} cores, contention up to {contention[1]:g}. "
    "Ratios to the rate of the set that does most, always busy: no schedule is faster. {tasks} "
    "tasks; noise: sigma of a log-normal factor on each call. Changed: the host's cores, when half "
    "the tasks should be done; measured from {soon} to {later} times the slowest device's time "
    "after that. The devices that only claim to share, and those that do not, have no host."
)


@dataclass(frozen=True)
class Plan:
    """One host, and what runs there."""

    times: Sequence[float]
    wanted: Sequence[float]
    cores: float
    contention: float
    noise: float = 0.0
    seed: int = 42
    tasks: int = TASKS
    #: the host has so many times the cores when half of ``TASKS`` should be done
    change: float = 1.0
    #: whether they are on that host, and slow one another; and whether they say so
    shared: bool = True
    claimed: bool = True

    @property
    def best(self) -> Sharing:
        """The devices that do most together at first."""
        return self.best_of(self.cores)

    @property
    def later(self) -> Sharing:
        """The devices that do most after the change."""
        return self.best_of(self.cores * self.change)

    def best_of(self, cores: float) -> Sharing:
        """The devices that do most together with so many cores."""
        host = SimulatedHost(cores, self.contention)
        if not self.shared:
            host = SimulatedHost(math.fsum(self.wanted), 0.0)
        places = [Place(host, wanted) for wanted in self.wanted]
        (found,) = sharings(self.times, places)
        return found

    @property
    def changes_at(self) -> float:
        """When the host changes."""
        return TASKS / 2 / self.best.rate

    def drivers(self, host: SimulatedHost) -> Iterator[SimulatedDriver]:
        """The devices on ``host``."""
        for number, (time, wanted) in enumerate(zip(self.times, self.wanted, strict=True), 1):
            yield SimulatedDriver(
                f"{number}",
                time,
                noise=self.noise,
                seed=self.seed,
                host=host if self.shared else None,
                cores=wanted,
                shares=host.name if self.claimed else (),
            )


@dataclass(frozen=True)
class Kind:
    """A kind of hosts, and what is demanded of them."""

    title: str
    plans: Sequence[Plan]


def plans(context: Context) -> list[Kind]:
    """Hosts of each kind: the same for the same seed."""
    chance = random.Random(f"{context.seed}/hosts")
    count = FEW if context.short else MANY
    quiet = [_drawn(chance, 0.0) for _ in range(count)]
    noisy = [_drawn(chance, NOISE) for _ in range(count)]
    halved = [_changed(chance, 0.5) for _ in range(count // 2)]
    doubled = [_changed(chance, 2.0) for _ in range(count // 2)]
    others = quiet[: count // 2]
    return [
        Kind("steady", quiet),
        Kind("noisy", noisy),
        Kind("cores halved", halved),
        Kind("cores doubled", doubled),
        Kind("independent", [replace(plan, shared=False, claimed=False) for plan in others]),
        Kind("claim to share", [replace(plan, shared=False) for plan in others]),
    ]


def _drawn(chance: random.Random, noise: float) -> Plan:
    number = chance.randint(*DEVICES)
    return Plan(
        [_spread(chance, *TIMES) for _ in range(number)],
        [_spread(chance, *WANTED) for _ in range(number)],
        chance.uniform(*CORES),
        chance.uniform(*CONTENTION),
        noise,
        chance.randrange(10**6),
        TASKS,
    )


def _spread(chance: random.Random, least: float, most: float) -> float:
    return math.exp(chance.uniform(math.log(least), math.log(most)))


def _changed(chance: random.Random, change: float) -> Plan:
    """A host that changes, with enough tasks to see what comes of it, and not too many."""
    while True:
        plan = replace(_drawn(chance, 0.0), change=change)
        after = LATER * max(plan.times) * plan.later.rate
        if (tasks := TASKS // 2 + math.ceil(after)) <= MOST_TASKS:
            return replace(plan, tasks=tasks)


# ---- running them


@dataclass(frozen=True)
class Figures:
    """What one host showed: ratios to what the best set would have done."""

    #: of the second half of the tasks, and of all
    second_half: float
    whole: float
    #: after the change
    changed: float
    #: tasks of each device
    tasks: Mapping[str, int]
    makespan: float


def simulated(plan: Plan) -> Figures:
    """Run one plan."""
    return run_virtual(_simulated(plan))


async def _simulated(plan: Plan) -> Figures:
    loop = asyncio.get_running_loop()
    host = SimulatedHost(plan.cores, plan.contention)
    finished = array("d")
    async with Dispatcher(plan.drivers(host), wait_for="all") as dispatcher:
        start = loop.time()
        if plan.change != 1:
            at, cores = start + plan.changes_at, plan.cores * plan.change
            loop.call_at(at, setattr, host, "cores", cores)
        async for result in dispatcher.results(range(plan.tasks)):
            result.unwrap()
            finished.append(result.finished - start)
        stats = dispatcher.stats()
    ends = sorted(finished)
    half, last = ends[len(ends) // 2 - 1], ends[-1]
    best = plan.best.rate
    slow = max(plan.times)
    return Figures(
        second_half=(len(ends) - len(ends) // 2) / (last - half) / best,
        whole=plan.tasks / last / best,
        changed=_rate(ends, plan.changes_at + SOON * slow, plan.changes_at + LATER * slow)
        / plan.later.rate,
        tasks={device.name: device.tasks for device in stats.devices},
        makespan=last,
    )


def _rate(ends: Sequence[float], first: float, last: float) -> float:
    """Tasks a second that ended between these, or until the last one ended."""
    last = min(last, ends[-1])
    return sum(first < end <= last for end in ends) / (last - first) if last > first else math.nan


def hosts(context: Context, outcome: Outcome) -> None:
    """Run all of them, on all processors: nothing here goes by real time."""
    kinds = plans(context)
    workers = min(32, machine()["usable_cores"] or 1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, begin_worker) as pool:
        asked = [(kind, [pool.submit(simulated, plan) for plan in kind.plans]) for kind in kinds]
        found: dict[str, list[Figures]] = {}
        for kind, futures in asked:
            context.progress(f"simulated hosts: {kind.title}")
            found[kind.title] = [future.result() for future in futures]
    for kind in kinds:
        pairs = zip(kind.plans, found[kind.title], strict=True)
        outcome.runs += [_run(kind.title, number, *pair) for number, pair in enumerate(pairs, 1)]
    outcome.tables.append(_table(found))
    outcome.plots.append(_plot(found))
    outcome.checks += checks(found)


def _run(title: str, number: int, plan: Plan, figures: Figures) -> Run:
    return Run(
        suite="sharing",
        case=f"simulated host, {title}",
        policy="sharing" if plan.claimed else "apart",
        devices=list(figures.tasks),
        tasks=plan.tasks,
        window=1024,
        queue_size=1024,
        noise=plan.noise,
        seed=plan.seed,
        run=number,
        makespan=figures.makespan,
        ratio=1 / figures.whole if plan.change == 1 else math.nan,
        throughput=plan.tasks / figures.makespan,
        figures={
            "clock": "virtual",
            **_ratios(plan, figures),
            "tasks": figures.tasks,
            "times": plan.times,
            "wanted": plan.wanted,
            "cores": plan.cores,
            "contention": plan.contention,
            "best": [str(at + 1) for at in plan.best.best],
        },
    )


def _ratios(plan: Plan, figures: Figures) -> Mapping[str, float]:
    """Those that mean something for this plan."""
    if plan.change != 1:
        return {"after_change": figures.changed, "change": plan.change}
    return {"second_half": figures.second_half, "whole": figures.whole}


def checks(found: Mapping[str, Sequence[Figures]]) -> list[Check]:
    """What is demanded of each kind."""
    halves = {kind: [each.second_half for each in of] for kind, of in found.items()}
    whole = {kind: [each.whole for each in of] for kind, of in found.items()}
    changed = {kind: [each.changed for each in of] for kind, of in found.items()}
    best = "of the best set's rate"
    both = [*halves["steady"], *halves["noisy"]]
    middle = statistics.median(both)
    return [
        _least(f"hosts: the second half >= {SECOND_HALF} {best}", halves, SECOND_HALF, "steady"),
        _least(
            f"hosts with noise: the second half >= {SECOND_HALF_NOISY} {best}",
            halves,
            SECOND_HALF_NOISY,
            "noisy",
        ),
        Check(
            f"hosts: the second half >= {MEDIAN} {best} in the median",
            f"{middle:.4f} (of {len(both)})",
            middle >= MEDIAN,
        ),
        _least(f"hosts: the whole job >= {WHOLE} {best}", whole, WHOLE, "steady", "noisy"),
        _least(
            f"hosts whose cores change: {SOON} calls of the slowest device later >= "
            f"{SECOND_HALF} {best}",
            changed,
            SECOND_HALF,
            "cores halved",
            "cores doubled",
        ),
        _least(
            f"independent devices: the whole job >= {INDEPENDENT} of what they can do",
            whole,
            INDEPENDENT,
            "independent",
        ),
        _least(
            f"independent devices that claim to share: the same >= {CLAIMED}",
            whole,
            CLAIMED,
            "claim to share",
        ),
    ]


def _least(claim: str, ratios: Mapping[str, Sequence[float]], limit: float, *kinds: str) -> Check:
    values = {
        f"{kind} {number}": ratio for kind in kinds for number, ratio in enumerate(ratios[kind], 1)
    }
    return worst(claim, values, limit, least=True)


def _table(found: Mapping[str, Sequence[Figures]]) -> Table:
    rows: list[Sequence[str]] = []
    for kind, of in found.items():
        cells = [
            _cell([each.second_half for each in of]),
            _cell([each.whole for each in of]),
            "-",
        ]
        if kind.startswith("cores"):
            cells = ["-", "-", _cell([each.changed for each in of])]
        rows.append((kind, str(len(of)), *cells))
    columns = ("hosts", "", "second half: worst, median", "whole job", "after the change")
    note = _NOTE.format(
        devices=DEVICES,
        times=TIMES,
        wanted=WANTED,
        cores=CORES,
        contention=CONTENTION,
        tasks=TASKS,
        soon=SOON,
        later=LATER,
    )
    return Table("made-up hosts: rate / that of the best set", columns, rows, note)


def _cell(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.4f}, {statistics.median(ratios):.4f}"


def _plot(found: Mapping[str, Sequence[Figures]]) -> Plot:
    shown: dict[str, Sequence[float]] = {}
    for kind, of in found.items():
        if kind.startswith("cores"):
            shown[f"{kind}, then"] = [each.changed for each in of]
        else:
            shown[f"{kind}, second half"] = [each.second_half for each in of]
            shown[f"{kind}, whole job"] = [each.whole for each in of]
    title = "Made-up hosts: rate / that of the set of devices that does most"
    note = "A dot is a host. Simulated devices on a virtual clock."
    return Plot("hosts", title, dots(shown, "rate / the best set's"), note)
