"""Memory, by memory_profiler: of this process with its children, and of runs of their own."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from asyncinfer.bench.record import Run, Table
from asyncinfer.bench.suite import Context

__all__ = ("memory_now", "memory_of_runs", "memory_table")

#: seconds between two looks, as memory_profiler's own default
_INTERVAL = 0.1
#: seconds after which a run is given up
_PATIENCE = 60.0

_NAIVE = """
import itertools
from asyncinfer_drivers.torch_loops import inputs_of, naive_loop
naive_loop({model!r}, inputs_of({model!r}, {tasks}))
"""

_NOTE = (
    "The most that memory_profiler saw (resident, children included, looked at every 0.1 s) of a "
    "process of its own: Python, torch, the model, its inputs and their run."
)


def memory_now() -> float:
    """MiB that this process and its children hold; ``nan`` without memory_profiler."""
    try:
        usage = importlib.import_module("memory_profiler").memory_usage
    except ModuleNotFoundError:
        return math.nan
    return float(usage(-1, interval=0.01, timeout=0.01, include_children=True)[-1])


def memory_of_runs(model: str, tasks: int, context: Context) -> list[Run]:
    """The most that a plain loop over the model holds, and that ``asyncinfer run`` does."""
    profiler: Any = importlib.import_module("memory_profiler")
    ours = [sys.executable, "-m", "asyncinfer", "run", "--model", model, "--json", "--devices"]
    commands: Mapping[str, Sequence[str]] = {
        "plain loop": [sys.executable, "-c", _NAIVE.format(model=model, tasks=tasks)],
        "asyncinfer run, one device": [*ours, "cpu"],
        "asyncinfer run, two devices": [*ours, "cpu", "cpu"],
    }
    runs: list[Run] = []
    for policy, command in commands.items():
        context.progress(f"memory of {policy}, {model}")
        samples = _watched(profiler, command)
        figures = {"memory_mib": max(samples), "memory_samples": [round(s, 1) for s in samples]}
        runs.append(Run(suite="real", case=f"{model}: memory", policy=policy, figures=figures))
    return runs


def _watched(profiler: Any, command: Sequence[str]) -> list[float]:
    child = subprocess.Popen(  # noqa: S603  # our own command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        samples = profiler.memory_usage(
            child, interval=_INTERVAL, timeout=_PATIENCE, include_children=True
        )
    finally:
        child.kill()
        child.wait()
    return [float(sample) for sample in samples if sample] or [math.nan]


def memory_table(runs: Sequence[Run]) -> Table:
    """A line a model."""
    policies = list(dict.fromkeys(run.policy for run in runs))
    found = {(run.case, run.policy): run.figures["memory_mib"] for run in runs}
    rows = [
        [case.partition(":")[0], *(f"{found[case, policy]:.0f} MiB" for policy in policies)]
        for case in dict.fromkeys(run.case for run in runs)
    ]
    return Table("Memory at its most", ["", *policies], rows, _NOTE)
