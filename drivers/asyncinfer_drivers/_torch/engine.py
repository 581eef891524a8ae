"""A model with all that is done to it when a driver opens, in the thread or process it runs in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from asyncinfer.errors import AsyncInferError, ConfigError, DeviceLost
from asyncinfer_drivers._torch import malloc
from asyncinfer_drivers._torch.course import finished
from asyncinfer_drivers._torch.device import available, choose, is_device_fault
from asyncinfer_drivers._torch.guard import Guarded
from asyncinfer_drivers._torch.load import load
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.state import Own
from asyncinfer_drivers._torch.threads import CoreShare, Crew, Share, every_core, usable_cores
from asyncinfer_drivers._torch.tuning import Tuning, Wide, longest_call
from asyncinfer_drivers._torch.variants import Forward

__all__ = ("Engine", "EngineChores", "claim")

logger = logging.getLogger("asyncinfer.torch")

#: a model whose first calls end within so many seconds is so small that nearly all can be found out
#: about it while its driver opens, in these seconds at most; a larger one begins at once
_SMALL, _AT_ONCE = 0.1, 0.25


def claim(options: TorchOptions) -> CoreShare | None:
    """The driver's share of this host's cores, joined; ``None`` where it computes elsewhere."""
    if torch.device(choose(options.device, *available())).type != "cpu":
        return None
    share = CoreShare(options.threads, usable_cores(), every_core())
    share.join()
    return share


class Engine:
    """From ``load`` to ``release``, all in one thread.

    ``pause`` sleeps for seconds, or less when closing; ``wanted`` says whether the result of a
    long call is still waited for, ``going`` whether the engine is to go on at all.

    It begins with the model as it is. What is faster is sought in steps (``Chores``), once there is
    an input: the warm-up's, or the first that the model has answered.
    """

    def __init__(
        self,
        options: TorchOptions,
        share: Share | None,
        *,
        pause: Callable[[float], None],
        wanted: Callable[[], bool],
        going: Callable[[], bool] = lambda: True,
    ) -> None:
        self._options = options
        self._crew = None if share is None else Crew(share)
        self._pause = pause
        self._wanted = self._asked = wanted
        self._going = going
        self._malloc_held = False
        self._heaps: list[int] = []
        self._own: Own | None = None
        self._tuning: Tuning | None = None
        self._wide = Wide(longest_call(options))
        #: the size that is best for tasks of one shape, once it is found
        self._size: int | None = None
        #: seconds that calls with real tasks have taken
        self.worked = 0.0
        self.runner: Runner | None = None
        #: one raw input, or ``None``
        self.warmup: Any = None
        #: tasks a call takes
        self.max_batch = options.size or 1
        #: what was chosen; replaced with each change
        self.details: dict[str, str | float] = {}

    def load(self) -> None:
        """Load the model, try it, optimise it.

        Raises ``ConfigError`` if it cannot be loaded or run, ``DeviceLost`` for the device's fault.
        """
        name = self._options.called
        try:
            self._load()
            self._options = replace(self._options, model=None)  # it may have been copied
        except ConfigError as error:
            if str(error).startswith(f"{name}: "):
                raise
            raise ConfigError(f"{name}: {error}") from error
        except AsyncInferError:
            raise
        except Exception as error:
            if is_device_fault(error):
                raise DeviceLost(name, str(error)) from error
            text = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{name}: cannot load the model: {text}") from error

    def release(self) -> None:
        """Free the model: milliseconds for a large one."""
        cuda = self.runner is not None and self.runner.device.type == "cuda"
        if self._tuning is not None:
            self._tuning.close()
            self._tuning = None
        self.runner = None
        if self._own is not None:
            self._own.release()
            self._own = None
        if self._malloc_held:
            self._malloc_held = False
            malloc.free(self._heaps)
            self._heaps = []
            malloc.release()
        if cuda:
            torch.cuda.empty_cache()

    def run(self, batch: Sequence[Any], *, real: bool = True) -> list[Any]:
        """As ``Runner.run``, and learn from it what may be faster, if the tasks are ``real``."""
        runner = self.runner
        assert runner is not None  # noqa: S101  # it was loaded
        began = time.perf_counter()
        outputs = runner.run(batch)
        reason = runner.division.reason
        if reason and reason is not self.details.get("batches"):
            self._tell(batches=reason)
        if not real:
            return outputs
        took = time.perf_counter() - began
        self.worked += took
        if self._size is not None and len(batch) > 1:
            self._wide.learn(len(batch), runner.shapes, took)
            most = self._wide.most(self._size, self.max_batch)
            if most != self.max_batch:
                self.max_batch = most
                self._tell(max_batch=most)
        if self._tuning is not None and not self._tuning.over:
            self._tuning.begin()
        return outputs

    @property
    def waiting(self) -> bool:
        """Whether something is to be tried."""
        return self._tuning is not None and self._tuning.waiting

    def step(self) -> bool:
        """Try some of it, if there is something to do now."""
        return self._tuning is not None and self._tuning.step()

    def tune(self) -> None:
        """Try all of it at once, as long as that is wanted."""
        if self._tuning is not None:
            self._asked = self._wanted
            try:
                self._tuning.finish()
            finally:
                self._asked = self._going

    def reset(self) -> None:
        """Begin a new stream; ``DeviceLost`` if the model fails to."""
        if self._own is not None and self._options.stateful:
            self._own.reset()

    def _load(self) -> None:
        options = self._options
        device = torch.device(choose(options.device, *available()))
        if str(device) != options.device:
            self.details["device"] = str(device)
        self._malloc_held = options.malloc == "auto" and device.type == "cpu" and malloc.hold()
        if self._malloc_held:
            self._heaps = malloc.keep_heaps()
        loaded = load(options.model, device)
        own = self._own = Own(options, loaded.module)
        runner = Runner(
            name=options.called,
            module=own.module,
            device=device,
            steps=options.steps.imported().over(loaded.steps),
            share=self._crew,
            slowdown=options.slowdown,
            pause=self._pause,
            micro_batch=options.micro_batch,
            takes=own.takes,
            recall=own.recall,
            source=own,
            wanted=self.max_batch,
            trusted=options.batching == "trusted",
        )
        runner.forward = own
        self.warmup = options.warmup_input
        if self.warmup is None and loaded.example is not None:
            self.warmup = loaded.example()
        tuning = self._tuning = Tuning(
            options,
            runner,
            own,
            self._crew,
            tell=self._tell,
            sized=self._sized,
            wanted=lambda: self._asked(),
        )
        began, small = time.perf_counter(), False
        if self.warmup is not None:
            runner.warm_up(self.warmup, self.max_batch)
            small = time.perf_counter() - began < _SMALL
            self._settle(runner, own, tuning)
        elif options.plans:
            raise ConfigError(f"{options.called}: optimize needs a warmup_input to try things with")
        self.max_batch = min(self.max_batch, runner.division.most or self.max_batch)
        self._describe(runner)
        self._asked = self._going
        self.runner = runner
        if small:
            tuning.begin_for(_AT_ONCE)
        else:
            tuning.begin()

    def _settle(self, runner: Runner, own: Own, tuning: Tuning) -> None:
        """Go on with what the first calls have shown about the module."""
        runner.module = own.module
        if self._options.stateful:
            self.reset()
        elif own.settled:
            runner.forward = own.module
        if self._options.plans:
            self._use_named(runner, own, tuning)

    def _use_named(self, runner: Runner, own: Own, tuning: Tuning) -> None:
        """Use the form that ``optimize`` names, if it is right."""
        with own.turn():
            tensor = runner.example(self.warmup)
            choice = finished(tuning.form(tensor))
            if not choice.plan:
                return
            form: Forward = Guarded(self._options.called, runner.module, choice, tensor)
            if own.settled:
                runner.forward = form
            else:
                own.use(form)

    def _sized(self, size: int) -> None:
        """Take batches of that size from now on."""
        self._size = self.max_batch = size
        if self.runner is not None:
            self.runner.part = size
        self._tell(max_batch=size)

    def _tell(self, **details: str | float) -> None:
        self.details = {**self.details, **details}

    def _describe(self, runner: Runner) -> None:
        options, details = self._options, dict[str, str | float]()
        if options.stateful:
            details["optimize"] = "none: stateful"
        elif options.plans is None:
            details["optimize"] = "none yet"
        elif not options.plans:
            details["optimize"] = "none"
        details["max_batch"] = self.max_batch
        if runner.division.reason:
            details["batches"] = runner.division.reason
        if options.micro_batch is not None:
            details["micro_batch"] = options.micro_batch
        if self._crew is not None:
            details["threads"] = self._crew.threads
        details["malloc"] = "raised" if self._malloc_held else "as it is"
        self._tell(**details)


class EngineChores:
    """What an engine has to try between calls, once there is one: ``Chores`` of its thread."""

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._engine = engine

    @property
    def waiting(self) -> bool:
        """Whether it has something to try."""
        engine = self._engine()
        return engine is not None and engine.waiting

    @property
    def worked(self) -> float:
        """Seconds that calls with real tasks have taken."""
        engine = self._engine()
        return 0.0 if engine is None else engine.worked

    def step(self) -> bool:
        """Have it try some of that."""
        engine = self._engine()
        return engine is not None and engine.step()
