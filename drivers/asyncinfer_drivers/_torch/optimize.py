"""Finds the fastest form of a model that gives the model's own answers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._torch import aot
from asyncinfer_drivers._torch.course import Job, Steps, finished
from asyncinfer_drivers._torch.device import is_device_fault, synchronize, timer
from asyncinfer_drivers._torch.judge import Judge
from asyncinfer_drivers._torch.paired import LEAST_PAIRS, compared
from asyncinfer_drivers._torch.variants import STEPS, Forward, Plan, Refused, make

__all__ = ("Choice", "Search", "plans_of")

logger = logging.getLogger("asyncinfer.torch")

#: what "auto" tries, in this order, for batches and for single tasks
_BATCHES: tuple[Plan, ...] = (
    ("freeze", "onednn"),
    ("channels_last", "freeze"),
    ("fuse", "channels_last"),
    ("freeze",),
    ("channels_last",),
)
_SINGLES: tuple[Plan, ...] = (
    ("channels_last", "freeze"),
    ("freeze",),
    ("fuse", "channels_last"),
    ("freeze", "onednn"),
    ("channels_last",),
)
#: seconds of budget that make "auto" compile; a compiled file that is there is always tried
_AOT_BUDGET = 60.0
#: a form has to be this many times as fast as the best before it
_WORTH_IT = 1.05
#: part of the budget that timing one form may take where it is not clear before
_TIMING_PART = 0.4
#: how often the budget may pass while forms are made and judged: calls go on beside that
_MAKING = 4.0
#: part of the budget that one timed call may take, which bounds its tasks
_CALL_PART = 0.02
#: tasks in a timed call at most
_LARGEST_SAMPLE = 64
#: first calls that are not timed: a graph is compiled in its second one
_UNCOUNTED = 2
#: calls of one task that are timed first
_CALLS_OF_ONE = 3
#: calls of one task that checking and timing one form take at least
_CALLS_OF_A_FORM = 20


def plans_of(optimize: str | Sequence[str]) -> tuple[Plan, ...] | None:
    """The plans that a driver's ``optimize`` names; ``None`` for "auto". ``ConfigError``."""
    if optimize == "auto":
        return None
    if optimize == "none":
        return ()
    names = optimize.split("+") if isinstance(optimize, str) else [*optimize]
    unknown = [name for name in names if name not in STEPS]
    if unknown or not names:
        shown = repr(unknown[0]) if unknown else "nothing"
        raise ConfigError(
            f"optimize: unknown {shown}; known: auto, none, {', '.join(STEPS)}, or some of these "
            "joined by +"
        )
    return (tuple(step for step in STEPS if step in names),)


@dataclass
class Choice:
    """A form of a model, and how it came about."""

    forward: Forward
    #: empty if it is the model as it is
    plan: Plan = ()
    #: images/s by those of the model as it is
    gain: float = 1.0
    #: why each plan that was not taken was not
    refused: dict[Plan, str] = field(default_factory=dict)
    #: seconds it took to find
    seconds: float = 0.0

    def __str__(self) -> str:
        return "+".join(self.plan) or "none"


@dataclass
class Search:
    """A search for one model on one device.

    ``item`` is the tensor of one task. ``cache`` is where compiled models are kept, ``None`` where
    none may run: they hold the interpreter's lock, and with it an event loop in another thread.
    ``budget`` is in seconds that calls are timed for; jobs, which run beside calls, may take
    ``_MAKING`` times as many of ``clock``. No form is begun that is likely to take more.
    ``wanted`` tells whether the result is still wanted; it is asked between steps. ``judged`` is
    asked in the place of ``module``, whose calls may run beside: a copy of it.
    """

    name: str
    module: nn.Module
    item: torch.Tensor
    batch: int
    budget: float
    cache: aot.Cache | None
    wanted: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.perf_counter
    judged: nn.Module | None = None
    #: seconds that calls were timed, and those of jobs, so far
    timed: float = field(default=0.0, init=False)
    made: float = field(default=0.0, init=False)

    def run(self, plans: tuple[Plan, ...] | None) -> Choice:
        """The fastest of ``plans`` ("auto" for ``None``) that is right; at worst the model itself.

        In the thread that the model will run in. Raises only what says that the device has failed.
        """
        return finished(self.steps(plans))

    def steps(self, plans: tuple[Plan, ...] | None) -> Steps[Choice]:
        """The same in steps: forms are made and judged in jobs, and timed between calls."""
        choice = Choice(self.module)
        if plans != ():
            yield from self._try_all(plans, choice)
        choice.seconds = self.timed + self.made
        for plan, reason in choice.refused.items():
            logger.debug("%s: not %s: %s", self.name, "+".join(plan), reason)
        return choice

    def _try_all(self, plans: tuple[Plan, ...] | None, choice: Choice) -> Steps[None]:
        one = math.inf
        for _ in range(_CALLS_OF_ONE):
            one = min(one, self._time(self.module, self.item.unsqueeze(0)))
            yield None
        fitting = int(_CALL_PART * self.budget / one)
        sample = _tiled(self.item, max(1, min(self.batch, fitting, _LARGEST_SAMPLE)))
        judge = Judge(self.judged or self.module, self.item, self.batch, sample)
        if plans is None and one * _CALLS_OF_A_FORM > self.budget:
            unfit = f"one call takes {one:.2g} s, too long to try anything"
        else:
            unfit = yield self._job(judge.unfit)
        if unfit:
            choice.refused = dict.fromkeys(plans or (("auto",),), unfit)
            return
        timing, longest = 2 * (LEAST_PAIRS + 1) * one * len(sample), 0.0
        for plan in self._auto(sample) if plans is None else plans:
            before = self.made
            late = self.timed + timing > self.budget or before + longest > _MAKING * self.budget
            if plans is None and late:
                choice.refused[plan] = "no time was left"
            elif self.wanted():
                yield from self._try(plan, sample, judge, choice, 0.0 if plans else _WORTH_IT)
                longest = max(longest, self.made - before)

    def _try(
        self, plan: Plan, sample: torch.Tensor, judge: Judge, choice: Choice, least: float
    ) -> Steps[None]:
        """Take this form if it is right, and ``least`` times as fast as the best before it."""
        reason = ""
        try:
            yield self._job(lambda: judge.allow(plan))
            forward: Forward = yield self._job(lambda: self._make(plan, sample))
            yield self._job(lambda: self._check(forward, sample, judge))
            times = yield from self._times(forward, choice.forward, sample, least)
            if times > least:
                yield self._job(lambda: judge.check_further(forward))
                choice.forward, choice.plan = forward, plan
                choice.gain *= times
            else:
                reason = f"{choice.gain * times:.2f} times as fast"
        except Exception as error:
            if is_device_fault(error):
                raise
            text = str(error).strip().partition("\n")[0]
            reason = text if isinstance(error, Refused) else _named(error, text)
        if reason:
            choice.refused[plan] = reason

    def _job(self, work: Job) -> Job:
        """The same, whose seconds are noted. Each ends soon: closing waits for one that runs."""

        def noted() -> Any:
            began = self.clock()
            try:
                return work()
            finally:
                self.made += self.clock() - began

        return noted

    def _make(self, plan: Plan, sample: torch.Tensor) -> Forward:
        with torch.inference_mode(False), torch.no_grad():
            return make(plan, self.judged or self.module, sample.clone(), self.cache)

    def _check(self, forward: Forward, sample: torch.Tensor, judge: Judge) -> None:
        """Raise ``Refused`` unless it has the model's answers to inputs like the sample."""
        judge.check(forward)
        for _ in range(_UNCOUNTED):
            forward(sample)

    def _auto(self, sample: torch.Tensor) -> list[Plan]:
        if self.item.device.type != "cpu":
            return [("channels_last",), ("fuse", "channels_last")]
        plans = [*(_BATCHES if len(sample) > 3 else _SINGLES)]
        if self.cache is None:
            return plans
        if self.budget >= _AOT_BUDGET and aot.possible():
            plans.append(("aot",))
        elif aot.cached(self.module, sample, self.cache):
            plans.insert(0, ("aot",))
        return plans

    def _times(
        self, forward: Forward, other: Forward, sample: torch.Tensor, least: float
    ) -> Steps[float]:
        """How many times as fast as ``other`` it is, which may be more than ``least`` or not."""
        before = self.timed
        longest = min(_TIMING_PART * self.budget, self.budget - before)
        times = yield from compared(
            lambda: self._time(forward, sample),
            lambda: self._time(other, sample),
            least=least,
            enough=lambda: self.timed - before > longest,
            wanted=self.wanted,
        )
        return times

    def _time(self, forward: Forward, sample: torch.Tensor) -> float:
        """Seconds of one call."""
        clock = timer(sample.device)
        started = clock()
        forward(sample)
        synchronize(sample.device)
        seconds = max(clock() - started, 1e-9)
        self.timed += seconds
        return seconds


def _tiled(item: torch.Tensor, count: int) -> torch.Tensor:
    return item.expand(count, *item.shape).contiguous()


def _named(error: Exception, text: str) -> str:
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
