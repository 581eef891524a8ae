"""Finds how a model is fastest: its batches, its form and its threads, in steps between calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncinfer_drivers._torch import aot, malloc
from asyncinfer_drivers._torch.copies import NoCopy
from asyncinfer_drivers._torch.course import Course, Steps
from asyncinfer_drivers._torch.device import timer
from asyncinfer_drivers._torch.footprint import too_large
from asyncinfer_drivers._torch.guard import Guarded
from asyncinfer_drivers._torch.inputs import Bundle, asked, repeated
from asyncinfer_drivers._torch.optimize import Choice, Search
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.paired import compared
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.sizes import LIMIT, LONGEST_CALL, best_size, memory_left
from asyncinfer_drivers._torch.state import Own
from asyncinfer_drivers._torch.threads import Crew, bind

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ("Tuning", "Wide", "longest_call")

logger = logging.getLogger("asyncinfer.torch")

#: seconds that finding the batch size takes at most
_SIZES_BUDGET = 2.5
#: another number of threads has to be this many times as fast as the one before
_WORTH_THREADS = 1.1
#: seconds that comparing two numbers takes at most
_THREADS_BUDGET = 1.0
#: seconds after which to look again whether what runs beside is done
_SOON = 0.001
#: a call of tasks of several shapes may take that many times as long as one of tasks of one shape
_WIDER = 2.0


class Tuning:
    """What is still to be found out about an engine's model; its thread takes the steps.

    ``tell`` is given the details as they become known, and ``sized`` each new size of batches.
    ``wanted`` says whether the result is still wanted.
    """

    def __init__(
        self,
        options: TorchOptions,
        runner: Runner,
        own: Own,
        crew: Crew | None,
        *,
        tell: Callable[..., None],
        sized: Callable[[int], None],
        wanted: Callable[[], bool],
    ) -> None:
        self._options = options
        self._runner = runner
        self._own = own
        self._crew = crew
        self._tell = tell
        self._sized = sized
        self._wanted = wanted
        self._size = options.size or 1
        #: whether something may run beside calls: there is a copy to ask
        self._beside = True
        #: ``None`` until there is an input, and again when all is found
        self._course: Course[None] | None = None
        #: whether everything is found, or cannot be
        self.over = options.stateful

    @property
    def waiting(self) -> bool:
        """Whether there is something to do."""
        return self._course is not None

    def begin(self) -> None:
        """Begin, if a task was answered: its tensor is there to try things with."""
        if not self.over and self._course is None and self._runner.first is not None:
            self._course = Course(self._steps(self._runner.first))

    def step(self) -> bool:
        """Take one step, if there is one to take now."""
        course = self._course
        return course is not None and self._take(lambda: course.step(beside=self._beside))

    def begin_for(self, seconds: float) -> None:
        """Begin, and go on for so many seconds at most (and a step)."""
        until = time.perf_counter() + seconds
        self.begin()
        while self.waiting and self._wanted() and time.perf_counter() < until:
            if not self.step():  # it waits for what runs beside
                time.sleep(_SOON)

    def finish(self) -> None:
        """Take all steps that are left, at once."""
        if self._course is not None:
            self._take(self._course.finish)

    def close(self) -> None:
        """End it where it is."""
        course, self._course, self.over = self._course, None, True
        if course is not None:
            course.close()

    def _take(self, step: Callable[[], bool | None]) -> bool:
        """A fault ends the search, and not the device: if it is one, the next call will show it."""
        done: bool | None = True
        try:
            done = step()
        except Exception as error:
            logger.warning(
                "%s: what would be fastest is sought no further: %s: %s",
                self._options.called, type(error).__name__, error,
            )  # fmt: skip
        if self._course is not None and self._course.over:
            self._course, self.over = None, True
            malloc.trim()
        return done is not False

    def _steps(self, tensor: torch.Tensor) -> Steps[None]:
        """All there is to find out, with the tensor of one task."""
        options, runner = self._options, self._runner
        runner.module = self._own.module
        malloc.trim()  # of the copies that opening has made
        if not self._own.settled:
            self._tell(optimize="none: it changes something outside of itself")
            return
        runner.forward = runner.module if self._own is runner.forward else runner.forward
        if options.size is None:
            yield from self._learn_division(tensor)
            yield from self._find_size()
        # forms are compared with as many threads as they will have: what they gain depends on it
        better = yield from self._find_threads(tensor)
        choice = Choice(runner.module)
        if options.plans is None and (reason := too_large(runner.module)):
            self._tell(optimize=f"none: {reason}")
        elif options.plans is None:
            choice = yield from self._find_form(tensor)
        if options.size is None and (better or choice.plan):
            yield from self._find_size()
        if choice.plan and "aot" not in choice.plan:  # whose threads are fixed
            yield from self._find_threads(tensor)

    def _learn_division(self, tensor: torch.Tensor) -> Steps[None]:
        runner = self._runner
        runner.division.widen(LIMIT)
        self._bind(None)
        runner.study(tensor)
        if runner.division.reason:
            self._tell(batches=runner.division.reason)
        yield None

    # ---- batches

    def _find_size(self) -> Steps[None]:
        options, runner, course = self._options, self._runner, self._course
        assert course is not None  # noqa: S101  # these are its steps
        size, rates = yield from best_size(
            runner.rehearse,
            limit=runner.division.most or LIMIT,
            budget=_SIZES_BUDGET,
            longest=longest_call(options) / options.slowdown,
            timer=timer(runner.device),
            wanted=self._wanted,
            memory=memory_left,
            clock=course.clock,
        )
        self._size = min(size, runner.division.most or size)
        self._sized(self._size)
        shown = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
        logger.info("%s: batches of %d (tasks/s by size: %s)", options.called, size, shown)

    # ---- forms

    def _find_form(self, tensor: torch.Tensor) -> Steps[Choice]:
        """Use the fastest form that is right, if it is not the module."""
        runner = self._runner
        choice = yield from self.form(tensor)
        if choice.plan:
            runner.forward = Guarded(self._options.called, runner.module, choice, tensor)
        return choice

    def form(self, tensor: torch.Tensor) -> Steps[Choice]:
        """Seek the fastest form that is right, at worst the module itself."""
        options, runner = self._options, self._runner
        several = isinstance(tensor, Bundle)
        if several or runner.division.least > 1:
            why = "it takes several inputs" if several else "the model takes no single tasks"
            refused = dict.fromkeys(options.plans or (), why)
            choice = Choice(runner.module, refused=refused)
        else:
            choice = yield from self._search(tensor).steps(options.plans)
        self._tell_form(choice)
        return choice

    def _search(self, tensor: torch.Tensor) -> Search:
        options, runner = self._options, self._runner
        batch = options.size or LIMIT
        batch = min(batch, options.micro_batch or batch, runner.division.most or batch)
        threads = self._crew.threads if self._crew else 1
        return Search(
            options.called,
            runner.module,
            tensor,
            batch,
            options.optimize_seconds,
            aot.Cache.of_user(batch, threads) if options.isolated else None,
            self._wanted,
            judged=None if self._course is None else self._copy(),
        )

    def _copy(self) -> nn.Module | None:
        """A copy to be asked beside calls of the module; none if there can be none."""
        try:
            return self._own.fresh()
        except NoCopy:
            self._beside = False
            return None

    def _tell_form(self, choice: Choice) -> None:
        options = self._options
        if choice.plan:
            self._tell(optimize=str(choice), gain=round(choice.gain, 2))
            logger.info(
                "%s: %s is %.1f times as fast as the model as it is, with the same answers; "
                "found in %.1f s", options.called, choice, choice.gain, choice.seconds,
            )  # fmt: skip
        elif options.plans:
            reason = next(iter(choice.refused.values()), "not tried")
            self._tell(optimize=str(choice), refused=reason)
            logger.warning(
                "%s: not optimised with %s: %s", options.called, "+".join(options.plans[0]), reason
            )
        else:
            self._tell(optimize=str(choice))

    # ---- threads

    def _find_threads(self, tensor: torch.Tensor) -> Steps[bool]:
        """Find how many the present form should have; whether these are others than before."""
        crew = self._crew
        if crew is None or not crew.others:
            return False
        size = min(self._size, self._options.micro_batch or self._size)
        sample = repeated(tensor, size)
        before, best = crew.threads, crew.due
        for threads in sorted({before, *crew.others} - {best}):
            times = yield from self._times(threads, best, sample)
            if times > _WORTH_THREADS:
                best = threads
        if best != before:
            crew.choose(best)
            self._tell(threads=best)
            logger.info("%s: %d threads", self._options.called, best)
        self._bind(None)
        return best != before

    def _times(self, one: int, other: int, sample: torch.Tensor) -> Steps[float]:
        """How many times as fast one number of threads is as another."""
        spent = 0.0

        def seconds(threads: int) -> float:
            nonlocal spent
            took = self._timed(threads, sample)
            spent += took
            return took

        times = yield from compared(
            lambda: seconds(one),
            lambda: seconds(other),
            least=_WORTH_THREADS,
            enough=lambda: spent > _THREADS_BUDGET,
            wanted=self._wanted,
        )
        return times

    def _timed(self, threads: int, sample: torch.Tensor) -> float:
        self._bind(threads)
        clock = timer(sample.device)
        began = clock()
        asked(self._runner.forward, sample)
        return max(clock() - began, 1e-9)

    def _bind(self, threads: int | None) -> None:
        if self._crew is not None:
            bind(threads or self._crew.threads)


class Wide:
    """How many tasks a call should have where their shapes differ, so that equal ones meet.

    Only tasks of one shape are run together. With as many in a call as there are shapes, times the
    size that is best for one, most groups are large enough.
    """

    def __init__(self, longest: float) -> None:
        self._longest = _WIDER * longest
        self._shapes = 1.0
        self._each = 0.0

    def learn(self, tasks: int, shapes: int, seconds: float) -> None:
        """Take a call into account."""
        self._shapes += (shapes - self._shapes) / 4
        each = seconds / tasks
        self._each += (each - self._each) / 4 if self._each else each

    def most(self, size: int, now: int) -> int:
        """Tasks of a call, where ``size`` is best for one shape and there are ``now`` at most."""
        if self._shapes < 1.5:  # as nearly always
            return size
        within = self._longest / self._each if self._each > 0 else now
        wide = max(size, min(LIMIT, int(size * self._shapes), int(within)))
        return wide if not 0.8 < wide / now < 1.25 else now


def longest_call(options: TorchOptions) -> float:
    """Seconds that a call may take where the size of batches is found."""
    target = options.latency_target
    return LONGEST_CALL if target is None else min(target, LONGEST_CALL)
