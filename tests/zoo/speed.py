"""How fast models of others are through a driver, beside the best loop written by hand.

    python tests/zoo/speed.py --models mobilenetv3 --turns 7

Loops differ in form, batch and torch's threads; the fastest is run in turns with
``Dispatcher.stream`` over one driver with default options. Prints a line of JSON for each model,
with the median of the ratios of turns beside each other.

Forms are those that are right for every input: the module itself, in ``inference_mode``, with its
channels last, and what ``torch.export`` makes of it with a dynamic batch and length, whose guards
are checked in each call. A frozen trace keeps the branch that its example took: it is admitted only
where the module's Python code does not look at values or sizes. MiniLM's does.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from models import masked, pictures, sentences, timm_net

from asyncinfer import Dispatcher
from asyncinfer_drivers._torch.branches import watched
from asyncinfer_drivers.torch_host import TorchDriver

#: tasks of one shape that a loop runs at once
BATCHES = (1, 8, 32)
#: seconds each loop is tried for, and a turn lasts
TRIED, TURN = 1.0, 2.0
#: a stream's window is what the best loop does in a second, within these: what is left in it at the
#: end of a turn is waited for
WINDOWS = 16, 256

MODELS: dict[str, Callable[[], tuple[Any, list[Any]]]] = {
    "mobilenetv3": lambda: (timm_net("mobilenetv3_large_100", 224), pictures((224, 224), count=32)),
    "convnext_tiny": lambda: (timm_net("convnext_tiny", 224), pictures((224, 224), count=16)),
    "minilm, ragged": lambda: (sentences(), masked(*RAGGED, vocabulary=20_000, count=64)),
}
#: words in a sentence
RAGGED = (7, 12, 31, 9, 18, 24, 12, 9, 45, 16, 12, 7)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--max-batch", nargs="*", default=["auto"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name in given.models:
        module, tasks = MODELS[name]()
        loops = candidates(module.eval(), tasks)
        rates = {told: measured(loop, tasks, TRIED) for told, loop in loops.items()}
        best = max(rates, key=lambda told: rates[told])
        one = max((t for t in rates if "threads 1" in t), key=lambda told: rates[told])
        for size in given.max_batch:
            batch = size if size == "auto" else int(size)
            found = asyncio.run(
                beside(
                    module,
                    tasks,
                    {"best": loops[best], "one": loops[one]},
                    batch,
                    given.turns,
                    min(max(int(rates[best]), WINDOWS[0]), WINDOWS[1]),
                )
            )
            print(json.dumps({"model": name, "max_batch": size, "best": best, "one": one, **found}))


def candidates(module: torch.nn.Module, tasks: list[Any]) -> dict[str, Callable[[Any], int]]:
    """Loops over all tasks by their form, batch and threads; each gives how many it did."""
    found: dict[str, Callable[[Any], int]] = {}
    for form, batch, threads in itertools.product(FORMS, BATCHES, (1, 2)):
        try:
            forward = FORMS[form](module, torch.stack([tasks[0]] * 2))
            same(module, forward, tasks)
        except Exception as error:
            print(f"no {form}: {str(error).partition(chr(10))[0]}")
            continue
        found[f"{form}, batch {batch}, threads {threads}"] = Loop(forward, batch, threads)
    return found


@torch.inference_mode()
def same(module: torch.nn.Module, forward: Any, tasks: list[Any]) -> None:
    """Raise ``ValueError`` if a form has other answers, or what it raises for one of the shapes."""
    for task in {task.shape: task for task in tasks}.values():
        one = task.unsqueeze(0)
        if not torch.allclose(module(one), forward(one), rtol=1e-3, atol=1e-3):
            raise ValueError("it has other answers")


def exported(module: torch.nn.Module, example: torch.Tensor) -> Any:
    ragged = {} if example.ndim == 4 else {example.ndim - 1: torch.export.Dim.AUTO}
    shapes = ({0: torch.export.Dim.AUTO, **ragged},)
    return torch.export.export(module, (example,), dynamic_shapes=shapes).module()


def frozen(module: torch.nn.Module, example: torch.Tensor) -> Any:
    seen = watched(module, example[:1]).values
    if seen:
        raise ValueError(seen)
    with torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))


def channels_last(module: torch.nn.Module, example: torch.Tensor) -> Any:
    if example.ndim != 4:
        raise ValueError("for pictures only")
    form = copy.deepcopy(module).to(memory_format=torch.channels_last)
    return lambda x: form(x.contiguous(memory_format=torch.channels_last))


FORMS: dict[str, Callable[[torch.nn.Module, torch.Tensor], Any]] = {
    "eager": lambda module, _: module,
    "channels last": channels_last,
    "exported": exported,
    "frozen trace": frozen,
}


class Loop:
    """One loop as one writes it by hand: those of the same shape go together."""

    def __init__(self, forward: Any, batch: int, threads: int) -> None:
        self.forward, self.batch, self.threads = forward, batch, threads

    @torch.inference_mode()
    def __call__(self, tasks: Sequence[torch.Tensor]) -> int:
        torch.set_num_threads(self.threads)
        ordered = sorted(tasks, key=lambda task: task.shape)
        for _, group in itertools.groupby(ordered, key=lambda task: task.shape):
            same = list(group)
            for at in range(0, len(same), self.batch):
                self.forward(torch.stack(same[at : at + self.batch])).unbind()
        return len(tasks)


def measured(loop: Callable[[Any], int], tasks: Sequence[Any], seconds: float) -> float:
    """Tasks a second, in a thread of its own."""

    def timed() -> float:
        loop(tasks[:2])
        done, began = 0, time.perf_counter()
        while not done or time.perf_counter() - began < seconds:
            done += loop(tasks)
        return done / (time.perf_counter() - began)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(timed).result()


async def beside(
    module: Any, tasks: list[Any], loops: dict[str, Any], batch: Any, turns: int, window: int
) -> dict[str, Any]:
    """The driver and the loops in turns."""
    driver = TorchDriver(module, max_batch=batch)
    rates: dict[str, list[float]] = {name: [] for name in ("driver", *loops)}
    async with Dispatcher([driver], window=window, queue_size=window) as dispatcher:
        await streamed(dispatcher, tasks)
        await driver.tune()
        await streamed(dispatcher, tasks)
        for _ in range(turns):
            for name, loop in loops.items():
                rates[name].append(await asyncio.to_thread(measured, loop, tasks, TURN))
            rates["driver"].append(await streamed(dispatcher, tasks))
    ratios = {
        f"driver / {name}": statistics.median(
            one / other for one, other in zip(rates["driver"], rates[name], strict=True)
        )
        for name in loops
    }
    medians = {name: round(statistics.median(some), 1) for name, some in rates.items()}
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    return {**rounded, "tasks/s": medians, "details": dict(driver.details)}


async def streamed(dispatcher: Dispatcher[Any, Any], tasks: list[Any]) -> float:
    done, began = 0, time.perf_counter()
    endless = itertools.cycle(tasks)
    until = itertools.takewhile(lambda _: time.perf_counter() - began < TURN, endless)
    async for _ in dispatcher.stream(until):
        done += 1
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
