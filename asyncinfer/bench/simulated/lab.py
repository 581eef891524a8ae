"""Where simulated cases are run, kept and put into tables."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from asyncinfer._text import seconds
from asyncinfer.bench.record import Outcome, Plot, Run, Table
from asyncinfer.bench.simulated.simulation import Observed, Plan, simulate
from asyncinfer.bench.suite import Context
from asyncinfer.events import EventHook

__all__ = ("DEVICES", "POLICIES", "Case", "Lab", "Results", "begin_worker")

#: sets of devices by what they show, in seconds per task
DEVICES: Mapping[str, Sequence[float]] = {
    "paper's 8": (1.2, 1.5, 1.1, 2.0, 1.8, 1.3, 1.7, 1.4),
    "5 ms, 100 ms, 1 s": (0.005, 0.1, 1.0),
    "10, 20, 40, 80 ms": (0.01, 0.02, 0.04, 0.08),
}
#: ours first
POLICIES = ("eft", "greedy", "static", "sync", "serial")
#: this many cases are asked for until the first of them has to be done: enough to keep every
#: worker busy beside a long one, and few enough for the lines of progress to tell how far it is
AHEAD = 64

#: what a case showed, and its row in the CSV
Result: TypeAlias = tuple[Observed, Run]


@dataclass(frozen=True)
class Case:
    """One simulated run: it may still be under way, in another process."""

    name: str
    plan: Plan
    result: Future[Result]
    #: whether it runs on the virtual clock
    virtual: bool = True

    @property
    def observed(self) -> Observed:
        """What it showed; waits for it, and raises what it raised."""
        return self.result.result()[0]

    @property
    def row(self) -> Run:
        """Its row in the CSV; waits for it, and raises what it raised."""
        return self.result.result()[1]

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
    """Runs plans for one suite.

    If there is more than one of ``workers``, runs on the virtual clock are spread over as many
    processes. Those are started when needed, and gone when the ``with`` block of the lab ends.
    """

    suite: str
    context: Context
    workers: int = 1
    #: its rows come with ``finished``
    outcome: Outcome = field(init=False)
    cases: list[Case] = field(default_factory=list)
    _pool: ProcessPoolExecutor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.suite)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def finished(self) -> Outcome:
        """The outcome, with the row of every case in the order in which they were asked for."""
        self.outcome.runs = [case.row for case in self.cases]
        return self.outcome

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
        """Simulate one plan: ask for all that can be run side by side, then look at the first."""
        if len(self.cases) >= AHEAD:
            self.cases[-AHEAD].result.result()
        self.context.progress(f"{name}: {plan.policy}")
        work = partial(_result, self.suite, name, plan, run, virtual, on_event, figures)
        pooled = self.workers > 1 and virtual and on_event is None
        case = Case(name, plan, self._submit(work) if pooled else _done(work()), virtual)
        self.cases.append(case)
        return case

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, spawn, begin_worker)
        return self._pool.submit(work)

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


def _result(
    suite: str,
    name: str,
    plan: Plan,
    run: int,
    virtual: bool,
    on_event: EventHook | None,
    figures: Mapping[str, Any],
) -> Result:
    observed = simulate(plan, virtual=virtual, on_event=on_event)
    clock = "virtual" if virtual else "real"
    return observed, observed.run(suite, name, plan, run=run, clock=clock, **figures)


def _done(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def begin_worker() -> None:
    """Let Ctrl-C end a worker at once and in silence, and let none outlive a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cells(case: Case) -> tuple[str, str, str]:
    hold = case.observed.hold_mean
    return (
        f"{case.ratio:.4f}",
        seconds(hold if hold > 1e-9 else 0.0),
        str(case.observed.stats.max_reorder),
    )
