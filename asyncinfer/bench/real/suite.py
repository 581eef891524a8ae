"""The suite ``real``: real models on real devices of this host, and on an emulated board.

Classification of pictures, detection of faces, and digits. What is emulated, and what only stands
for another device, is said in the notes.
"""

from __future__ import annotations

import importlib.util
import time

from asyncinfer.bench.real import batching, open_calls, stage, torch_loops
from asyncinfer.bench.real.memory import memory_of_runs, memory_table
from asyncinfer.bench.record import Outcome
from asyncinfer.bench.suite import Context
from asyncinfer.errors import AsyncInferError

__all__ = ("run",)

_MODELS = ("digits", "efficientnet_lite0", "mtcnn")
#: those that are run in loops without us as well
_TORCH = ("digits", "small_net", "efficientnet_lite0")
_DIGITS_ONLY = "the short form has digits only; run it without --short"


def run(context: Context) -> Outcome:
    """Measure everything; some five minutes, the short form some seconds with digits only."""
    start = time.perf_counter()
    outcome = Outcome("real")
    for model in _MODELS[:1] if context.short else _MODELS:
        try:
            stage.stage(model, context, outcome)
        except AsyncInferError as error:
            outcome.skipped.append(f"{model}: {error}")
    for model in _TORCH[:1] if context.short else _TORCH:
        torch_loops.torch_comparison(model, context, outcome)
    if context.short:
        left = "pictures, faces, calls at random, batching, memory of runs"
        outcome.skipped.append(f"{left}: {_DIGITS_ONLY}")
    else:
        open_calls.open_calls(context, outcome)
        batching.batching(context, outcome)
        _memory(context, outcome)
    for part in (stage, torch_loops, open_calls, batching):
        outcome.checks += part.checks(outcome.runs)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _memory(context: Context, outcome: Outcome) -> None:
    """Of the models that were run."""
    if importlib.util.find_spec("memory_profiler") is None:
        outcome.skipped.append("memory: memory_profiler is not installed (asyncinfer[bench])")
        return
    measured = {run.case.partition(":")[0] for run in outcome.runs}
    runs = [
        run
        for model in _MODELS
        if model in measured
        for run in memory_of_runs(model, 1797 if model == "digits" else 7, context)
    ]
    if runs:
        outcome.runs += runs
        outcome.tables.append(memory_table(runs))
