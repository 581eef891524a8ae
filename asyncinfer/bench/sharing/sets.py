"""What sets of devices of this host do, beside all of them with the policy choosing."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias

from asyncinfer._text import rate
from asyncinfer.bench.measure import Spread, median_spread
from asyncinfer.bench.overhead.trials import in_turns, loops_here
from asyncinfer.bench.plots import bars
from asyncinfer.bench.real.devices import Opened, close_all, notes, open_all, with_own_steps
from asyncinfer.bench.record import Check, Outcome, Plot, Run, Table
from asyncinfer.bench.sharing.devices import Apart, devices_here
from asyncinfer.bench.sharing.rates import Span, Streaming
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig
from asyncinfer.driver import Driver
from asyncinfer.model import Model

__all__ = ("LEAST", "Members", "check", "sets", "subsets", "tables")

#: names of devices that run together
Members: TypeAlias = tuple[str, ...]

MODEL = "digits"
#: all devices together are to do this part of what the best of their sets does
LEAST = 0.95
#: of so many devices every set is looked at; of more, those of one, of two and of all
ALL_SETS = 6
#: sets that are measured in turns after a look at each: those that did most
FINALISTS = 3
#: the policies of the rows: all devices, of which some rest; a set that shares nothing, it is said,
#: so that all of it runs; and a first look at such a set
CHOOSING, APART, LOOK = "sharing", "apart", "apart, a look"

_SPEED = (
    "Digits, one ordered stream. Each set ran with shares=(), so that all of it worked. The best "
    "of {looks} looks at every set; of those that did most, each took turns with all devices as "
    "they are, which were opened anew for each round and had worked for {learn:g} s before: "
    "{turn:g} s of the one, {turn:g} s of the other. Median (least-most) of the turns; the share "
    "is the median of the ratios of a set's turn to its neighbours. "
)
_CHOSEN = (
    "Which devices took part at the end of each round, and what the dispatcher said of the others: "
    "stats().devices[i].rests. Tasks: in the last turn."
)


@dataclass(frozen=True)
class _Times:
    """How long things are measured."""

    #: a look at a set, and how many there are
    look: Span
    looks: int
    #: all devices work for so many seconds before their first turn
    learn: float
    turn: Span
    #: turns of each set in a round
    turns: int
    #: after so many seconds no round of a group is begun
    limit: float


_FULL = _Times(Span(0.1, 0.2), 3, 4.0, Span(0.2, 0.5), 2, 120.0)
_SHORT = _Times(Span(0.1, 0.2), 1, 2.0, Span(0.1, 0.3), 1, 5.0)


def subsets(names: Members) -> list[Members]:
    """All sets of these; where that are too many, those of one, of two and of all."""
    sizes = range(1, len(names) + 1) if len(names) <= ALL_SETS else (1, 2, len(names))
    return [found for size in sizes for found in combinations(names, size)]


def sets(context: Context, outcome: Outcome) -> None:
    """Measure this host's devices: the first ones, which are torch, and all of them."""
    chosen, first = devices_here(context)
    model = with_own_steps(MODEL)
    loops, _ = loops_here()
    with asyncio.Runner(loop_factory=list(loops.values())[-1]) as runner:
        context.progress(f"opening {', '.join(device.name for device in chosen)}")
        opened, skipped = runner.run(open_all(chosen, model))
        try:
            stage = _Stage(chosen, model, opened, context, runner)
            groups = _groups(chosen, first, {one.name for one in opened})
            outcome.runs += stage.runs(groups)
        finally:
            runner.run(close_all(opened))
    outcome.skipped += skipped
    times = stage.times
    note = _SPEED.format(looks=times.looks, learn=times.learn, turn=times.turn.measure)
    note = f"{note}{notes(chosen)}".rstrip(" .") + "."
    for group in groups:
        outcome.tables += tables(group, outcome.runs, note)
        outcome.plots.append(_plot(group, outcome.runs))
        outcome.checks.append(check(group, outcome.runs))


def _groups(chosen: Sequence[DeviceConfig], first: int, there: set[str]) -> list[Members]:
    """Those of the first ones that are there, and all that are; once if they are the same."""
    names = [device.name for device in chosen]
    groups = [tuple(n for n in some if n in there) for some in (names[:first], names)]
    return [group for group in dict.fromkeys(groups) if len(group) > 1]


class _Stage:
    """The open devices, and what is measured on them."""

    def __init__(
        self,
        chosen: Sequence[DeviceConfig],
        model: Model,
        opened: Sequence[Opened],
        context: Context,
        runner: asyncio.Runner,
    ) -> None:
        self._chosen = {device.name: device for device in chosen}
        self._model = model
        self._opened = {one.name: one for one in opened}
        self._context = context
        self._runner = runner
        self.times = _SHORT if context.short else _FULL
        assert model.inputs is not None  # noqa: S101  # built-in models have some
        self._items = list(model.inputs.items)

    def runs(self, groups: Sequence[Members]) -> list[Run]:
        """A look at every set, and rounds of each group beside the best of its sets."""
        looked = self._looks(
            list(dict.fromkeys(found for group in groups for found in subsets(group)))
        )
        runs = list(looked.values())
        for group in groups:
            best = _finalists(group, looked)
            end = time.perf_counter() + self.times.limit
            for number in range(1, 2 if self._context.short else self._context.runs + 1):
                if time.perf_counter() < end:
                    runs += [
                        replace(run, run=number, seed=self._context.seed)
                        for run in self._runner.run(self._round(group, best))
                    ]
        return runs

    def _looks(self, found: Sequence[Members]) -> Mapping[Members, Run]:
        """Of each set the look at which it did most: what slows the host down is not its own."""

        def look(members: Members) -> Run:
            self._context.progress(f"a look at {_title(members)}")
            return self._runner.run(self._apart(LOOK, members, self.times.look))

        cases = {_title(members): partial(look, members) for members in found}
        looks = in_turns(cases, self.times.looks, warm_up=0, limit=math.inf)
        return {
            members: max(looks[_title(members)], key=lambda run: run.throughput)
            for members in found
        }

    async def _round(self, group: Members, best: Sequence[Members]) -> list[Run]:
        """All devices, which learn, and then take turns with those sets."""
        self._context.progress(f"{_title(group)}, beside {len(best)} of their sets")
        drivers: list[Driver[Any, Any]] = [
            self._opened[name] if self._context.short else self._chosen[name].build(self._model)
            for name in group
        ]
        turn, runs = self.times.turn, list[Run]()
        async with Streaming(_title(group), CHOOSING, drivers, self._items) as whole:
            await whole.run(self.times.learn)
            runs.append(await whole.measured(turn))
            for _ in range(self.times.turns):
                for members in best:
                    apart = await self._apart(APART, members, turn)
                    after = await whole.measured(turn)
                    beside = (runs[-1].throughput + after.throughput) / 2
                    share = {"group": len(group), "share": beside / apart.throughput}
                    runs += [replace(apart, figures={**apart.figures, **share}), after]
        return runs

    async def _apart(self, policy: str, members: Members, span: Span) -> Run:
        """All of the set at work, whatever they take from each other."""
        drivers = [Apart(self._opened[name]) for name in members]
        async with Streaming(_title(members), policy, drivers, self._items) as some:
            return await some.measured(span)


def _title(members: Iterable[str]) -> str:
    return " + ".join(members)


def _finalists(group: Members, looked: Mapping[Members, Run]) -> list[Members]:
    """The sets that did most at a first look, and the whole group."""
    mine = [members for members in looked if set(members) <= set(group)]
    mine.sort(key=lambda members: looked[members].throughput, reverse=True)
    return list(dict.fromkeys([*mine[:FINALISTS], group]))


# ---- what was found


@dataclass(frozen=True)
class _Found:
    """What the sets of a group did, and all of it with the policy choosing."""

    together: Spread
    apart: Mapping[Members, Spread]
    #: all together, as a part of what a set did
    shares: Mapping[Members, float]
    #: those that were only looked at
    looked: Mapping[Members, float]

    @classmethod
    def of(cls, group: Members, runs: Iterable[Run]) -> _Found:
        """Sort the runs of this group's devices."""
        together: list[float] = []
        apart: dict[Members, list[Run]] = {}
        looked: dict[Members, float] = {}
        for run in runs:
            members = tuple(run.devices)
            if run.policy == CHOOSING and members == group:
                together.append(run.throughput)
            elif run.policy == APART and run.figures["group"] == len(group):
                apart.setdefault(members, []).append(run)
            elif run.policy == LOOK and set(members) <= set(group):
                looked[members] = run.throughput
        return cls(
            median_spread(together),
            {each: median_spread(run.throughput for run in of) for each, of in apart.items()},
            {
                each: statistics.median(run.figures["share"] for run in of)
                for each, of in apart.items()
            },
            looked,
        )

    @property
    def best(self) -> Members:
        """The set that did most, beside all of them."""
        return min(self.shares, key=lambda members: self.shares[members])


def check(group: Members, runs: Iterable[Run]) -> Check:
    """Whether all devices of the group do about as much as the best set of them."""
    found = _Found.of(group, runs)
    best = found.best
    share = found.shares[best]
    measured = (
        f"{share:.3f} ({rate(found.together.median)}/s beside {rate(found.apart[best].median)}/s "
        f"of {_title(best)}; all of them at work {rate(found.apart[group].median)}/s)"
    )
    claim = f"{_title(group)} together >= {LEAST} of the best of their sets"
    return Check(claim, measured, share >= LEAST)


def tables(group: Members, runs: Sequence[Run], note: str) -> list[Table]:
    """What the sets did, and which one was chosen."""
    return [_speeds(group, runs, note), _choices(group, runs)]


def _speeds(group: Members, runs: Sequence[Run], note: str) -> Table:
    found = _Found.of(group, runs)
    rows: list[Sequence[str]] = [(_whole(group), "-", _shown(found.together), "-")]
    for members in sorted(found.shares, key=lambda members: found.shares[members]):
        cells = rate(found.looked[members]), _shown(found.apart[members])
        rows.append((_title(members), *cells, f"{found.shares[members]:.3f}"))
    others = [members for members in found.looked if members not in found.apart]
    others.sort(key=lambda members: -found.looked[members])
    rows += [(_title(members), rate(found.looked[members]), "-", "-") for members in others]
    columns = ("devices", "at a look", "images/s in turns", "all, some resting / this")
    return Table(f"{len(group)} devices of this host: every set", columns, rows, note)


def _whole(group: Members) -> str:
    return f"all {len(group)}, some resting"


def _shown(found: Spread) -> str:
    return f"{rate(found.median)} ({rate(found.least)}-{rate(found.most)})"


def _choices(group: Members, runs: Iterable[Run]) -> Table:
    last = {run.run: run for run in runs if run.policy == CHOOSING and tuple(run.devices) == group}
    rows: list[Sequence[str]] = []
    for number, run in last.items():
        rests: Mapping[str, str] = run.figures["rests"]
        took = _title(name for name in group if name not in rests)
        why = "; ".join(f"{name} rests: {reason}" for name, reason in rests.items())
        rows.append((str(number), took, _parts(run), why or "-"))
    columns = ("round", "take part", "tasks", "why not the others")
    return Table(f"{len(group)} devices of this host: what was chosen", columns, rows, _CHOSEN)


def _parts(run: Run) -> str:
    done: Mapping[str, int] = run.figures["tasks"]
    return ", ".join(f"{name} {n / max(1, run.tasks):.1%}" for name, n in done.items() if n)


def _plot(group: Members, runs: Iterable[Run]) -> Plot:
    found = _Found.of(group, runs)
    ordered = sorted(found.apart.items(), key=lambda item: -item[1].median)
    values = {_whole(group): found.together, **{_title(members): of for members, of in ordered}}
    title = f"{len(group)} devices of this host: the sets that do most, and all of them"
    note = "Median and extremes of turns, all within one run; digits, one ordered stream."
    return Plot(f"sets-of-{len(group)}", title, bars(values, "images/s"), note)
