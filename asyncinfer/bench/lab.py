"""Where simulated cases are run, kept and put into tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from asyncinfer.bench.record import Outcome, Plot, Table
from asyncinfer.bench.simulation import Observed, Plan, simulate
from asyncinfer.bench.suite import Context
from asyncinfer.bench.text import seconds
from asyncinfer.events import EventHook

__all__ = ("DEVICES", "POLICIES", "Case", "Lab", "Results")

#: sets of devices by what they show, in seconds per task
DEVICES: Mapping[str, Sequence[float]] = {
    "paper's 8": (1.2, 1.5, 1.1, 2.0, 1.8, 1.3, 1.7, 1.4),
    "5 ms, 100 ms, 1 s": (0.005, 0.1, 1.0),
    "10, 20, 40, 80 ms": (0.01, 0.02, 0.04, 0.08),
}
#: ours first
POLICIES = ("eft", "greedy", "static", "sync", "serial")


@dataclass(frozen=True)
class Case:
    """One simulated run and what it was."""

    name: str
    plan: Plan
    observed: Observed
    #: whether it ran on the virtual clock
    virtual: bool = True

    @property
    def ratio(self) -> float:
        """Makespan / optimum."""
        return self.observed.makespan / self.plan.optimum

    @property
    def hold(self) -> float:
        """Mean hold time, as a part of the slowest service time."""
        return self.observed.hold_mean / max(self.plan.service_times)


#: cases by what is varied, then by policy
Results: TypeAlias = dict[str, dict[str, Case]]


@dataclass
class Lab:
    """Runs plans for one suite."""

    suite: str
    context: Context
    outcome: Outcome = field(init=False)
    cases: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.suite)

    def pick(self, full: Iterable[Any], short: Iterable[Any]) -> list[Any]:
        """What to vary: ``short`` if that was asked for."""
        return list(short if self.context.short else full)

    def run(
        self,
        name: str,
        plan: Plan,
        *,
        run: int = 1,
        virtual: bool = True,
        on_event: EventHook | None = None,
        **figures: Any,
    ) -> Case:
        """Simulate one plan and keep its row."""
        self.context.progress(f"{name}: {plan.policy}")
        case = Case(name, plan, simulate(plan, virtual=virtual, on_event=on_event), virtual)
        clock = "virtual" if virtual else "real"
        row = case.observed.run(self.suite, name, plan, run=run, clock=clock, **figures)
        self.outcome.runs.append(row)
        self.cases.append(case)
        return case

    def sweep(
        self,
        title: str,
        plans: Mapping[str, Plan],
        policies: Sequence[str] = POLICIES[:2],
        note: str = "",
    ) -> Results:
        """Run each plan under each policy; a table shows ratios and holds side by side."""
        results: Results = {
            name: {
                policy: self.run(f"{title}: {name}", replace(plan, policy=policy))
                for policy in policies
            }
            for name, plan in plans.items()
        }
        cells = ("x optimum", "hold", "reorder")
        columns = [f"{policy}: {cell}" for policy in policies for cell in cells]
        rows = [
            [name, *(cell for policy in policies for cell in _cells(cases[policy]))]
            for name, cases in results.items()
        ]
        self.table(title, ["case", *columns], rows, note)
        return results

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        note: str = "",
    ) -> None:
        """Add a table to the outcome."""
        simulated = "Simulated devices on a virtual clock."
        self.outcome.tables.append(Table(title, columns, rows, f"{note} {simulated}".strip()))

    def plot(self, name: str, title: str, draw: Callable[[Any], None], note: str = "") -> None:
        """Add a plot to the outcome."""
        simulated = "Simulated devices on a virtual clock."
        self.outcome.plots.append(Plot(name, title, draw, f"{note} {simulated}".strip()))


def _cells(case: Case) -> tuple[str, str, str]:
    hold = case.observed.hold_mean
    return (
        f"{case.ratio:.4f}",
        seconds(hold if hold > 1e-9 else 0.0),
        str(case.observed.stats.max_reorder),
    )
