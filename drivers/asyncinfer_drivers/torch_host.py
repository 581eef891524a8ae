"""Devices that torch computes on: this host's CPU, CUDA and MPS."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.errors import AsyncInferError, ConfigError, DeviceLost, DeviceTimeout
from asyncinfer_drivers._torch.device import (
    available,
    check_name,
    choose,
    describe,
    is_device_fault,
)
from asyncinfer_drivers._torch.load import load
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.steps import Steps
from asyncinfer_drivers._torch.threads import CoreShare, usable_cores
from asyncinfer_drivers._worker import Worker

__all__ = ("TorchDriver",)

#: seconds that timing calls of one batch size may take in ``calibrate``, and calls at most
_TIMING_BUDGET, _TIMING_CALLS = 0.4, 5


class TorchDriver(Driver[Any, Any]):
    """Runs a torch model in a thread of its own.

    ``model`` is one of

    - an ``nn.Module``. It is never changed. In evaluation mode and on the right device it is used
      as it is, so several drivers share one copy (they compute with it at the same time: a module
      that writes to itself in ``forward`` needs one each). Otherwise, when any part of it is in
      training mode or elsewhere, the driver takes a copy of its own when it opens;
    - the path of a TorchScript file or of a ``.pt2`` file from ``torch.export``. Such files are
      programs: load only those you trust;
    - a function without arguments that returns a module, or ``"module:function"`` to import it;
    - the name of a built-in model (entry-point group ``asyncinfer.models``) or such a model
      itself. It brings the steps below and ``warmup_input`` where none are given.

    It is loaded by ``open``, in the thread, and released by ``close``.

    An input becomes one tensor: ``preprocess(input)``, or the input itself, may be a tensor, a
    numpy array, a number or nested lists of numbers. Those of a batch that agree in shape and
    dtype are stacked to ``[n, *shape]``, moved to the device and run together; others run apart.
    The output is ``postprocess(row)``, or the row: a CPU tensor of its own without the batch
    dimension, or the tuple, list or dict of those if the model returns one.

    ``collate(inputs)``, which returns a new tensor ``[n, *shape]``, and ``uncollate(output)``,
    which makes n outputs of the model's whole output, do the same for a batch at once: faster for
    small models. They are tried first; if one fails, the step for one task finds the culprit.

    Faults of one task come back in its place, at every batch size: the exception that
    ``preprocess``, the model or ``postprocess`` raised, or an ``InputError`` for what is no tensor
    or has a shape or dtype that the model refuses after it has accepted another (the warm-up's,
    or that of an earlier task, or of the batch's majority). If a whole batch raises, its tasks
    run one by one. Only the device's own faults, such as CUDA errors and a full GPU, are raised,
    as ``DeviceLost``.

    ``device`` is ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"mps"``, or ``"auto"``: the first there is
    of CUDA, MPS and CPU. ``threads`` is the number of intra-op threads on a CPU; by default the
    host's cores but one, which is left to the event loop, are divided among the CPU drivers that
    are open, as they come and go; each has at least one thread. It holds for this driver only (on
    torch builds without OpenMP: for the whole process).

    ``warmup_input`` is one raw input. With it ``open`` runs the model once, failing with
    ``ConfigError`` if that fails, and ``calibrate`` can tell how long a call takes.

    ``slowdown`` stretches every call to that many times its own duration by sleeping in the
    thread. It makes a stand-in for a slower host in demos and tests, nothing else.

    ``concurrency`` is the number of ``infer`` calls accepted at once. The thread runs them one
    after another; 2 hides the hand-over between thread and event loop.

    Cancelling ``infer`` cannot interrupt a call that runs: the cancelled coroutine ends with it.
    ``close`` waits ``close_timeout`` seconds for a running call, then raises ``DeviceTimeout`` and
    leaves the thread to end with that call; it does not keep the interpreter from exiting.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int = 1,
        preprocess: Callable[[Any], Any] | str | None = None,
        postprocess: Callable[[Any], Any] | str | None = None,
        collate: Callable[[Sequence[Any]], Any] | str | None = None,
        uncollate: Callable[[Any], Sequence[Any]] | str | None = None,
        warmup_input: Any = None,
        slowdown: float = 1.0,
        concurrency: int = 1,
        close_timeout: float = 10.0,
    ) -> None:
        check_name(device)
        for option, value in (("threads", threads), ("max_batch", max_batch)):
            _at_least_one(option, value)
        _at_least_one("concurrency", concurrency)
        if not slowdown >= 1:
            raise ConfigError(f"slowdown must be at least 1, not {slowdown!r}")
        self.name = device if name is None else name
        self.max_batch = max_batch
        self.concurrency = concurrency
        self._model = model
        self._device = device
        self._threads = threads
        self._steps = Steps.given(preprocess, postprocess, collate, uncollate)
        self._warmup_input = warmup_input
        self._slowdown = slowdown
        self._close_timeout = close_timeout
        self._session: _Session | None = None

    @classmethod
    def discover(cls) -> list[dict[str, Any]]:
        """The torch devices of this host: ``name``, as ``device`` takes it, and ``description``."""
        return describe(*available(), usable_cores())

    async def open(self) -> None:
        """Start the thread, load the model, run ``warmup_input`` if there is one.

        Raises ``ConfigError`` if the device is not available or the model cannot be loaded or run,
        ``DeviceLost`` for the device's own faults.
        """
        if self._session is not None and self._session.runner is not None:
            return
        await self.close()
        session = self._session = _Session(self.name)
        session.worker.start()
        try:
            await session.worker.run(self._load, session)
        except BaseException:
            await self.close()
            raise
        if self._session is not session:
            raise DeviceLost(self.name, "closed while it was opening")

    async def close(self) -> None:
        """End the thread and release the model. Idempotent.

        Raises ``DeviceTimeout`` if a call still runs after ``close_timeout`` seconds.
        """
        session, self._session = self._session, None
        if session is not None and not await session.worker.stop(self._close_timeout):
            raise DeviceTimeout(
                self.name, f"still computing after {self._close_timeout:g} s; its thread is left"
            )

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; one output, or the exception that is that task's fault, for each."""
        session, runner = self._opened()
        return await session.worker.run(runner.run, batch)

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with ``warmup_input``, hand-over and ``slowdown`` included.

        Takes about a second at most, or two calls where those are longer. ``None`` without a
        ``warmup_input``.
        """
        session, _ = self._opened()
        if session.warmup is None:
            return None
        one = await self._time(session.warmup, 1)
        size = min(self.max_batch, int(_TIMING_BUDGET / one))
        if size < 2:
            return ServiceTime(0.0, one)
        return line(one, size, await self._time(session.warmup, size))

    async def probe(self) -> None:
        """Compute something small once the thread is free; ``DeviceLost`` if that fails."""
        session, runner = self._opened()
        await session.worker.run(runner.probe)

    async def _time(self, item: Any, size: int) -> float:
        """Median seconds of a few calls with ``size`` tasks, after one that is not counted."""
        batch, seconds = [item] * size, list[float]()
        while len(seconds) <= _TIMING_CALLS and sum(seconds) < _TIMING_BUDGET:
            started = time.perf_counter()
            await self.infer(batch)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:] or seconds)

    def _opened(self) -> tuple[_Session, Runner]:
        if self._session is None or self._session.runner is None:
            raise DeviceLost(self.name, "not open")
        return self._session, self._session.runner

    def _load(self, session: _Session) -> None:
        """Runs in the worker thread."""
        try:
            device = torch.device(choose(self._device, *available()))
            if device.type == "cpu":
                session.share = CoreShare(self._threads, usable_cores())
                session.share.join()
            session.runner = self._make_runner(session, device)
        except AsyncInferError:
            raise
        except Exception as error:
            if is_device_fault(error):
                raise DeviceLost(self.name, str(error)) from error
            text = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self.name}: cannot load the model: {text}") from error

    def _make_runner(self, session: _Session, device: torch.device) -> Runner:
        loaded = load(self._model, device)
        runner = Runner(
            name=self.name,
            module=loaded.module,
            device=device,
            steps=self._steps.imported().over(loaded.steps),
            share=session.share,
            slowdown=self._slowdown,
            pause=session.worker.pause,
        )
        session.warmup = self._warmup_input
        if session.warmup is None and loaded.example is not None:
            session.warmup = loaded.example()
        if session.warmup is not None:
            runner.warm_up(session.warmup, self.max_batch)
        return runner


class _Session:
    """What exists from ``open`` to ``close``: made, and freed, in the worker thread."""

    def __init__(self, name: str) -> None:
        self.worker = Worker(name, at_end=self._release)
        self.runner: Runner | None = None
        self.share: CoreShare | None = None
        self.warmup: Any = None

    def _release(self) -> None:
        """Freeing a large model takes milliseconds: not on the event loop."""
        cuda = self.runner is not None and self.runner.device.type == "cuda"
        self.runner = None
        if self.share is not None:
            self.share.leave()
        if cuda:
            torch.cuda.empty_cache()


def line(one: float, size: int, many: float) -> ServiceTime:
    """The line through 1 task in ``one`` seconds and ``size`` in ``many``; no part is negative."""
    per_task = max(0.0, (many - one) / (size - 1))
    if per_task > one:
        return ServiceTime(0.0, many / size)
    return ServiceTime(one - per_task, per_task)


def _at_least_one(option: str, value: object) -> None:
    if value is not None and not (isinstance(value, int) and value >= 1):
        raise ConfigError(f"{option} must be a whole number of at least 1, not {value!r}")
