"""A model with all that is done to it when a driver opens, in the thread or process it runs in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from asyncinfer.errors import AsyncInferError, ConfigError, DeviceLost
from asyncinfer_drivers._torch import aot, malloc
from asyncinfer_drivers._torch.device import available, choose, is_device_fault, timer
from asyncinfer_drivers._torch.guard import Guarded
from asyncinfer_drivers._torch.load import load
from asyncinfer_drivers._torch.optimize import Choice, Search
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.sizes import LIMIT, LONGEST_CALL, best_size, memory_left
from asyncinfer_drivers._torch.state import Own
from asyncinfer_drivers._torch.threads import CoreShare, Share, usable_cores
from asyncinfer_drivers._torch.variants import Forward

__all__ = ("Engine", "claim")

logger = logging.getLogger("asyncinfer.torch")

#: seconds that finding the batch size takes at most, and a call with the size that is found
_SIZES_BUDGET = 1.5


def claim(options: TorchOptions) -> CoreShare | None:
    """The driver's share of this host's cores, joined; ``None`` where it computes elsewhere."""
    if torch.device(choose(options.device, *available())).type != "cpu":
        return None
    share = CoreShare(options.threads, usable_cores())
    share.join()
    return share


class Engine:
    """From ``load`` to ``release``, all in one thread.

    ``pause`` sleeps for seconds, or less when closing; ``wanted`` says whether the result of a
    long call is still waited for.
    """

    def __init__(
        self,
        options: TorchOptions,
        share: Share | None,
        *,
        pause: Callable[[float], None],
        wanted: Callable[[], bool],
    ) -> None:
        self._options = options
        self._share = share
        self._pause = pause
        self._wanted = wanted
        self._malloc_held = False
        self._heaps: list[int] = []
        self._own: Own | None = None
        self.runner: Runner | None = None
        #: one raw input, or ``None``
        self.warmup: Any = None
        #: tasks a call takes
        self.max_batch = options.size or 1
        #: what was chosen
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
            share=self._share,
            slowdown=options.slowdown,
            pause=self._pause,
            micro_batch=options.micro_batch,
            takes=own.takes,
            source=own,
            wanted=options.size or LIMIT,
            trusted=options.batching == "trusted",
        )
        runner.forward = own
        self.warmup = options.warmup_input
        if self.warmup is None and loaded.example is not None:
            self.warmup = loaded.example()
        if self.warmup is not None:
            runner.warm_up(self.warmup, options.size or 2)
            self._settle(runner, own)
            if options.size is None and not options.stateful:
                self._find_size(runner)
        elif options.plans:
            raise ConfigError(f"{options.called}: optimize needs a warmup_input to try things with")
        self.max_batch = min(self.max_batch, runner.division.most or self.max_batch)
        self._describe(runner)
        self.runner = runner

    def _settle(self, runner: Runner, own: Own) -> None:
        """Go on with what the first calls have shown about the module."""
        runner.module = own.module
        if own.settled:
            runner.forward = self._optimized(runner)
        elif self._options.stateful:
            self.reset()
            self.details["optimize"] = "none: stateful"
        elif self._options.plans:
            with own.turn():
                own.use(self._optimized(runner))
        else:
            self.details["optimize"] = "none: it changes something outside of itself"

    def _optimized(self, runner: Runner) -> Forward:
        """The fastest form that is right, at worst the module."""
        options, item = self._options, runner.example(self.warmup)
        if runner.division.least > 1:
            refused = dict.fromkeys(options.plans or (), "the model takes no single tasks")
            choice = Choice(runner.module, refused=refused)
            self._tell(choice)
            return choice.forward
        batch = options.size or LIMIT
        batch = min(batch, options.micro_batch or batch, runner.division.most or batch)
        threads = self._share.threads if self._share else 1
        search = Search(
            options.called,
            runner.module,
            item,
            batch,
            options.optimize_seconds,
            aot.Cache.of_user(batch, threads) if options.isolated else None,
            self._wanted,
        )
        choice = search.run(options.plans)
        self._tell(choice)
        if choice.plan:
            return Guarded(options.called, runner.module, choice, item)
        return runner.module

    def _tell(self, choice: Choice) -> None:
        options = self._options
        self.details["optimize"] = str(choice)
        if choice.plan:
            self.details["gain"] = round(choice.gain, 2)
            logger.info(
                "%s: %s is %.1f times as fast as the model as it is, with the same answers; "
                "found in %.1f s", options.called, choice, choice.gain, choice.seconds,
            )  # fmt: skip
        elif options.plans:
            reason = next(iter(choice.refused.values()), "not tried")
            self.details["refused"] = reason
            logger.warning(
                "%s: not optimised with %s: %s", options.called, "+".join(options.plans[0]), reason
            )

    def _find_size(self, runner: Runner) -> None:
        target = self._options.latency_target
        size, rates = best_size(
            lambda size: _run(runner, [self.warmup] * size),
            limit=runner.division.most or LIMIT,
            budget=_SIZES_BUDGET,
            longest=LONGEST_CALL if target is None else min(target, LONGEST_CALL),
            timer=timer(runner.device),
            wanted=self._wanted,
            memory=memory_left,
        )
        self.max_batch = size
        shown = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
        logger.info("%s: batches of %d (tasks/s by size: %s)", self._options.called, size, shown)

    def _describe(self, runner: Runner) -> None:
        if self.warmup is None and self._options.plans is None:
            self.details["optimize"] = "none: no warmup_input"
            logger.info("%s: not optimised, for lack of a warmup_input", self._options.called)
        self.details.setdefault("optimize", "none")
        self.details["max_batch"] = self.max_batch
        if runner.division.reason:
            self.details["batches"] = runner.division.reason
        if self._options.micro_batch is not None:
            self.details["micro_batch"] = self._options.micro_batch
        if self._share is not None:
            self.details["threads"] = self._share.threads
        self.details["malloc"] = "raised" if self._malloc_held else "as it is"


def _run(runner: Runner, batch: list[Any]) -> None:
    for output in runner.run(batch):
        if isinstance(output, BaseException):
            raise output
    if runner.failed_size == len(batch):
        raise ValueError(f"the model takes no batch of {len(batch)}")
