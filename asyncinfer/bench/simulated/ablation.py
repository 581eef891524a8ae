"""The suite ``ablation``: one thing is varied at a time, on simulated devices in virtual time."""

from __future__ import annotations

from asyncinfer.bench.machine import machine
from asyncinfer.bench.record import Outcome
from asyncinfer.bench.simulated import changes, checks, sweeps
from asyncinfer.bench.simulated.lab import Lab
from asyncinfer.bench.suite import Context

__all__ = ("run",)

#: processes at most: Windows waits for no more than 61, and more would not find enough to do
MOST = 32


def run(context: Context) -> Outcome:
    """All sweeps, and our claims about them, on all processors: nothing here goes by real time."""
    workers = min(MOST, machine()["usable_cores"] or 1)
    with Lab("ablation", context, workers) as lab:
        _measure(lab)
        return lab.finished()


def _measure(lab: Lab) -> None:
    for sweep in (
        sweeps.number,
        sweeps.windows,
        sweeps.queues,
        sweeps.heterogeneity,
        sweeps.noise,
        sweeps.estimates,
        sweeps.mixed,
    ):
        sweep(lab)
    changes.live(lab)
    drift, added = changes.drift(lab), changes.added_device(lab)
    lab.outcome.checks += [
        *checks.makespan_checks(lab.cases),
        checks.hold_check(lab.cases),
        checks.noise_check(lab.cases),
        drift,
        added,
    ]
