"""What a benchmark records: one row a run, and what was made of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ("Check", "Outcome", "Plot", "Run", "Table")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one case: a row of the CSV. Times are seconds, ``nan`` where not measured."""

    suite: str
    #: what is measured, the same in all its runs
    case: str
    #: a scheduling policy, or the name of what is compared with it
    policy: str = ""
    #: names of the devices
    devices: Sequence[str] = ()
    tasks: int = 0
    window: float = math.nan
    queue_size: float = math.nan
    noise: float = 0.0
    seed: int = 42
    #: number of the repeat, from 1
    run: int = 1
    makespan: float = math.nan
    optimum: float = math.nan
    #: makespan / optimum
    ratio: float = math.nan
    #: tasks per second
    throughput: float = math.nan
    latency_mean: float = math.nan
    latency_p50: float = math.nan
    latency_p95: float = math.nan
    latency_p99: float = math.nan
    hold_mean: float = math.nan
    hold_p95: float = math.nan
    #: busy seconds / makespan of each device
    utilisation: Mapping[str, float] = field(default_factory=dict)
    utilisation_mean: float = math.nan
    #: most results that waited for an earlier one
    max_reorder: float = math.nan
    #: seconds in which devices did nothing, all of them together
    idle_seconds: float = math.nan
    #: most memory this process held, in bytes
    peak_rss: float = math.nan
    #: figures that only this suite has
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    title: str
    columns: Sequence[str]
    #: cells as they are shown
    rows: Sequence[Sequence[str]]
    #: what it shows, and what is simulated or emulated
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture of the report."""

    #: name of the file, without its suffix
    name: str
    title: str
    #: draws into a matplotlib ``Axes``
    draw: Callable[[Any], None]
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A claim, and whether the figures bear it out."""

    claim: str
    #: what was measured, as it is shown
    measured: str
    met: bool
    #: why not, or what it means
    why: str = ""
    #: whether the claim is somebody else's (the paper's), so that missing it is no failure
    quoted: bool = False


@dataclass
class Outcome:
    """All that one suite brings."""

    suite: str
    runs: list[Run] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    #: one line for each case that could not be run here, and what is missing
    skipped: list[str] = field(default_factory=list)
    #: seconds it took
    seconds: float = 0.0
    #: why it ended early; empty if it did not
    error: str = ""
    #: whether it was too short to hold anyone to what the clock said
    glimpse: bool = False

    @property
    def met(self) -> bool:
        """Whether it ran to its end, and every claim of ours held."""
        held = self.glimpse or all(check.met or check.quoted for check in self.checks)
        return held and not self.error
