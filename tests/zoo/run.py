"""Models of others through ``TorchDriver`` and a ``Dispatcher``, each beside its plain call.

    make zoo                                    all, in an environment of its own
    python tests/zoo/run.py --quick             fewer settings
    python tests/zoo/run.py --models bert gpt2  those whose name begins so
    python tests/zoo/run.py --list              their names

With 1 and 3 drivers, ``max_batch`` 1, 8 and "auto", in a thread and in a process, with a warm-up
input and without, and all other options as they are by default, every answer has to be the one of
``module(input)`` for this task alone, or the model is refused with a typed error before the first
answer: at first, when the model is as it is, while the driver seeks what is faster between calls,
during ``tune``, which finds the rest, and after it. The last line says how many of each there were;
the exit status is 1 if one was different.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from judge import unlike
from models import CASES

from asyncinfer import Dispatcher
from asyncinfer.errors import AsyncInferError, TaskError
from asyncinfer_drivers.torch_host import TorchDriver

#: starts a process a model, from one that has imported what all of them need
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["asyncinfer_drivers.torch_host", "models", "judge"])
#: how often each task is given, among the others; once to a model that keeps state
ROUNDS = 3
#: seconds for which tasks are given while a form is sought between them, at most
BETWEEN = 3.0


@dataclass(frozen=True)
class Setting:
    """How a model is run."""

    drivers: int
    max_batch: int | str
    isolation: str
    #: whether the driver has an input to try things with
    warm: bool

    def __str__(self) -> str:
        warm = "warm" if self.warm else "cold"
        return f"{self.drivers} x batch {self.max_batch}, {self.isolation}, {warm}"


ALL = [
    *(Setting(*one, True) for one in product((1, 3), (1, 8, "auto"), ("thread", "process"))),
    *(Setting(*one, "thread", False) for one in product((1, 3), (1, 8, "auto"))),
]
QUICK = [
    Setting(1, "auto", "thread", False),
    Setting(3, 8, "thread", True),
    Setting(3, 1, "thread", True),
    Setting(1, 8, "process", True),
]


@dataclass(frozen=True)
class Line:
    """What one setting of one model came to."""

    model: str
    setting: str
    outcome: str
    #: how it differs, or why it was refused
    reason: str = ""
    seconds: float = 0.0
    #: what the first driver tells
    details: str = ""


@dataclass(frozen=True)
class Said:
    """An output of a driver that was asked by itself, as a dispatcher's result."""

    value: Any
    error: BaseException | None

    @classmethod
    def of(cls, output: Any) -> Said:
        error = isinstance(output, BaseException)
        return cls(None, output) if error else cls(output, None)


@dataclass(frozen=True)
class Answer:
    """What was said to a task, and when."""

    phase: str
    index: int
    result: Any


# ---- one model, in a process of its own


def main_of_one(name: str, settings: list[Setting], lines: Connection) -> None:
    """Send a line for each setting."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(CASES[name], Path(folder))
        for setting in settings:
            lines.send(subject.tried(setting))


class Subject:
    """A model with its tasks and what it says to them by itself."""

    def __init__(self, case: Any, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.tasks = case.tasks()
        self.module = case.make()
        self.wanted = [] if case.random else [self._plain(task) for task in self.tasks]
        if self.wanted and all(not self._unlike(0, wanted) for wanted in self.wanted):
            raise SystemExit("it says the same to all: its inputs or weights show nothing")

    def tried(self, setting: Setting) -> Line:
        """Run it so, and judge each answer."""
        drivers: list[Any] = []
        began = time.monotonic()
        try:
            answers = asyncio.run(self._answers(setting, drivers))
            outcome, reason = self._judged(answers)
        except Exception as error:
            outcome, reason = _of_error(error)
        details = dict(drivers[0].details) if drivers else {}
        told = {key: details[key] for key in ("optimize", "gain", "max_batch") if key in details}
        seconds = time.monotonic() - began
        return Line(self.case.name, str(setting), outcome, reason, seconds, json.dumps(told))

    def _plain(self, task: Any) -> Any:
        # as many threads as a driver has on two cores: an untrained detector's boxes are so alike
        # that rounding, which is another with two, decides which of them come first
        torch.set_num_threads(1)
        with torch.inference_mode():
            return self.module(torch.as_tensor(task).clone().unsqueeze(0))

    def _order(self) -> list[int]:
        order = list(range(len(self.tasks)))
        if not self.case.stateful:
            order *= ROUNDS
            random.Random(42).shuffle(order)
        return order

    async def _answers(self, setting: Setting, drivers: list[Any]) -> list[Answer]:
        given = self.case.given(self.case.make(), self.folder)
        options = {**self.case.options, "max_batch": setting.max_batch}
        options["isolation"] = setting.isolation
        if setting.warm:
            options["warmup_input"] = self.tasks[0]
        drivers += [
            TorchDriver(given, name=f"cpu-{number}", **options) for number in range(setting.drivers)
        ]
        async with Dispatcher(drivers, wait_for="all") as dispatcher:
            answers = await self._streamed(dispatcher, "at first")
            if all(answer.result.error is not None for answer in answers):
                return answers
            if not self.case.stateful:
                answers += await self._while_tuning(dispatcher, drivers)
            for driver in drivers:
                answers += await self._each(driver)
            return answers + await self._streamed(dispatcher, "after")

    async def _while_tuning(self, dispatcher: Any, drivers: list[Any]) -> list[Answer]:
        """What is said while something is tried between calls, and in the middle of a ``tune``."""
        answers, began, over = list[Answer](), time.monotonic(), False
        while not over:
            over = time.monotonic() - began > BETWEEN or all(map(_has_form, drivers))
            answers += await self._streamed(dispatcher, "between")
            await asyncio.sleep(0.05)  # for what is tried only while nothing is asked
        tuned = asyncio.gather(*(driver.tune() for driver in drivers))
        answers += await self._streamed(dispatcher, "during tune")
        await tuned
        return answers

    async def _each(self, driver: Any) -> list[Answer]:
        """What each says by itself: a dispatcher may leave the slower ones aside."""
        if self.case.stateful:
            return []
        answers, order = list[Answer](), self._order()
        while order:
            part = order[: driver.max_batch]
            del order[: len(part)]
            outputs = await driver.infer([self.tasks[index].clone() for index in part])
            results = [Said.of(output) for output in outputs]
            phase = f"{driver.name} after tune"
            pairs = zip(part, results, strict=True)
            answers += [Answer(phase, index, result) for index, result in pairs]
        return answers

    async def _streamed(self, dispatcher: Any, phase: str) -> list[Answer]:
        order = self._order()
        tasks = (self.tasks[index].clone() for index in order)
        async with dispatcher.results(tasks) as results:
            said = [result async for result in results]
        if len(said) != len(order):
            raise RuntimeError(f"{len(said)} results for {len(order)} tasks")
        return [Answer(phase, *pair) for pair in zip(order, said, strict=True)]

    def _judged(self, answers: list[Answer]) -> tuple[str, str]:
        failed = [answer for answer in answers if answer.result.error is not None]
        if len(failed) == len(answers):
            return _of_error(failed[0].result.error)
        if self.case.random and not failed:
            return self._judged_random(answers)
        wrong = [
            f"{answer.phase}: {text}"
            for answer in answers
            if answer.result.error is None
            and (text := self._unlike(answer.index, answer.result.value))
        ]
        said = [f"{len(wrong)} of {len(answers)}: {wrong[0]}"] if wrong else []
        if failed:
            reason = f"{failed[0].phase}: {_of_error(failed[0].result.error)[1]}"
            said.append(f"{len(failed)} of {len(answers)} failed: {reason}")
        return ("different", "; ".join(said)) if said else ("equal", "")

    def _judged_random(self, answers: list[Answer]) -> tuple[str, str]:
        for index, task in enumerate(self.tasks):
            values = [answer.result.value for answer in answers if answer.index == index]
            if text := self.case.random(self.module, task, values):
                return "different", text
        return "equal", ""

    def _unlike(self, index: int, value: Any) -> str:
        return unlike(self.wanted[index], value, self.case.tolerance)


def _has_form(driver: Any) -> bool:
    """Whether the search for a form has ended: batches and threads may be sought still."""
    return driver.details["optimize"] != "none yet"


def _of_error(error: BaseException) -> tuple[str, str]:
    """Refused, if the error is of our tree and says why; its cause too, for a task's error."""
    cause = error.__cause__ if isinstance(error, TaskError) else None
    told = next((e for e in (cause, error) if e is not None), error)
    text = f"{type(told).__name__}: {str(told).strip().partition(chr(10))[0]}"[:300]
    if isinstance(error, AsyncInferError):
        return "refused", text
    frames = traceback.extract_tb(error.__traceback__)
    return "different", f"untyped {text} at {frames[-1].filename}:{frames[-1].lineno}"


# ---- all of them


def main() -> int:
    """Run what is asked for; the exit status."""
    given = parsed()
    if given.list:
        print("\n".join(f"{case.name}  ({case.package})" for case in CASES.values()))
        return 0
    names = _names(given.models)
    if not names:
        print("no model's name begins so; see --list", file=sys.stderr)
        return 2
    places = [given.isolation] if given.isolation else ["thread", "process"]
    settings = [one for one in (QUICK if given.quick else ALL) if one.isolation in places]
    lines = [line for name in names for line in lines_of(name, settings)]
    counts = Counter(line.outcome for line in lines)
    equal, refused, different = (counts[o] for o in ("equal", "refused", "different"))
    print(
        f"models {len(names)} settings {len(lines)} equal {equal} refused {refused} "
        f"different {different}"
    )
    return 1 if different else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=[], help="those whose name begins so")
    parser.add_argument("--quick", action="store_true", help="fewer settings")
    parser.add_argument("--isolation", choices=("thread", "process"), help="only so")
    parser.add_argument("--list", action="store_true", help="only tell their names")
    return parser.parse_args()


def _names(beginnings: list[str]) -> list[str]:
    """Those that are asked for, in that order."""
    named = [name for start in beginnings for name in CASES if name.startswith(start)]
    return list(dict.fromkeys(named)) if beginnings else [*CASES]


def lines_of(name: str, settings: list[Setting]) -> list[Line]:
    """Each model in a process of its own: what one leaves behind, or crashes, is no other's."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=main_of_one, args=(name, settings, theirs))
    child.start()
    theirs.close()
    lines = list[Line]()
    with contextlib.suppress(EOFError):
        while True:
            lines.append(ours.recv())
            show(lines[-1])
    child.join()
    if child.exitcode or len(lines) < len(settings):
        reason = f"its process ended with exit status {child.exitcode}"
        lines.append(Line(name, "all", "different", reason))
        show(lines[-1])
    return lines


def show(line: Line) -> None:
    print(
        f"{line.outcome:9} {line.model:28} {line.setting:36} {line.seconds:5.1f} s  "
        f"{line.reason or line.details}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
