"""Finds the fastest form of a model that gives the model's own answers."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._torch import aot
from asyncinfer_drivers._torch.course import Steps, finished
from asyncinfer_drivers._torch.device import is_device_fault, synchronize, timer
from asyncinfer_drivers._torch.judge import Judge
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
#: part of the budget that timing one form may take
_TIMING_PART = 0.08
#: part of the budget that one timed call may take, which bounds its tasks
_CALL_PART = 0.02
#: tasks in a timed call at most
_LARGEST_SAMPLE = 16
#: first calls that are not timed: a graph is compiled in its second one
_UNCOUNTED = 2
#: timed calls of a form, at least and at most
_LEAST_CALLS, _MOST_CALLS = 3, 25
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
    ``budget`` is in seconds of ``clock``: no form is begun that is likely to end after it.
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

    def run(self, plans: tuple[Plan, ...] | None) -> Choice:
        """The fastest of ``plans`` ("auto" for ``None``) that is right; at worst the model itself.

        In the thread that the model will run in. Raises only what says that the device has failed.
        """
        return finished(self.steps(plans))

    def steps(self, plans: tuple[Plan, ...] | None) -> Steps[Choice]:
        """The same in steps: forms are made and judged in jobs, and timed between calls."""
        started = self.clock()
        choice = Choice(self.module)
        if plans != ():
            yield from self._try_all(plans, choice, started)
        choice.seconds = self.clock() - started
        for plan, reason in choice.refused.items():
            logger.debug("%s: not %s: %s", self.name, "+".join(plan), reason)
        return choice

    def _try_all(
        self, plans: tuple[Plan, ...] | None, choice: Choice, started: float
    ) -> Steps[None]:
        one = math.inf
        for _ in range(_LEAST_CALLS):
            one = min(one, _timed(self.module, self.item.unsqueeze(0)))
            yield None
        fitting = int(_CALL_PART * self.budget / one)
        sample = _tiled(self.item, max(1, min(self.batch, fitting, _LARGEST_SAMPLE)))
        judge = Judge(self.judged or self.module, self.item, self.batch, sample)
        if plans is None and one * _CALLS_OF_A_FORM > self.budget:
            unfit = f"one call takes {one:.2g} s, too long to try anything"
        else:
            unfit = yield judge.unfit
        if unfit:
            choice.refused = dict.fromkeys(plans or (("auto",),), unfit)
            return
        longest = 0.0
        for plan in self._auto(sample) if plans is None else plans:
            begun = self.clock()
            if plans is None and begun - started + longest > self.budget:
                choice.refused[plan] = "no time was left"
            elif self.wanted():
                yield from self._try(plan, sample, judge, choice, 0.0 if plans else _WORTH_IT)
                longest = max(longest, self.clock() - begun)

    def _try(
        self, plan: Plan, sample: torch.Tensor, judge: Judge, choice: Choice, least: float
    ) -> Steps[None]:
        """Take this form if it is right, and ``least`` times as fast as the best before it."""
        reason = ""
        try:
            forward: Forward = yield lambda: self._made(plan, sample, judge)
            times = yield from self._times(forward, choice.forward, sample)
            if times > least:
                yield lambda: judge.check_further(forward)
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

    def _made(self, plan: Plan, sample: torch.Tensor, judge: Judge) -> Forward:
        """The form, with the model's answers to inputs like the sample. Raises ``Refused``."""
        judge.allow(plan)
        with torch.inference_mode(False), torch.no_grad():
            forward = make(plan, self.judged or self.module, sample.clone(), self.cache)
        judge.check(forward)
        for _ in range(_UNCOUNTED):
            forward(sample)
        return forward

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

    def _times(self, forward: Forward, other: Forward, sample: torch.Tensor) -> Steps[float]:
        """How many times as fast as ``other`` it is: the median over calls in turns.

        The speed of a host that others use as well changes from one moment to the next.
        """
        found, spent = list[float](), 0.0
        for call in range(-_UNCOUNTED, _MOST_CALLS):
            seconds, beside = _timed(forward, sample), _timed(other, sample)
            if call >= 0:
                found.append(beside / seconds)
                spent += seconds + beside
            enough = call + 1 >= _LEAST_CALLS and spent > _TIMING_PART * self.budget
            if enough or not self.wanted():
                break
            yield None
        return statistics.median(found or [1.0])


def _timed(forward: Forward, sample: torch.Tensor) -> float:
    """Seconds of one call."""
    clock = timer(sample.device)
    started = clock()
    forward(sample)
    synchronize(sample.device)
    return max(clock() - started, 1e-9)


def _tiled(item: torch.Tensor, count: int) -> torch.Tensor:
    return item.expand(count, *item.shape).contiguous()


def _named(error: Exception, text: str) -> str:
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
