"""Devices that torch computes on: this host's CPU, CUDA and MPS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._shared.timing import measured
from asyncinfer_drivers._torch.device import available, check_name, describe
from asyncinfer_drivers._torch.engine import Spec
from asyncinfer_drivers._torch.hosts import Host, ThreadHost
from asyncinfer_drivers._torch.optimize import plans_of
from asyncinfer_drivers._torch.process import ProcessHost
from asyncinfer_drivers._torch.threads import usable_cores

__all__ = ("TorchDriver",)


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
    run one by one. Only the device's own faults, such as CUDA errors and full memory, are raised,
    as ``DeviceLost``.

    ``device`` is ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"mps"``, or ``"auto"``: the first there is
    of CUDA, MPS and CPU. ``threads`` is the number of intra-op threads on a CPU; by default the
    host's cores but one, which is left to the event loop, are divided among the CPU drivers that
    are open, as they come and go; each has at least one thread. It holds for this driver only (on
    torch builds without OpenMP: for the whole process).

    ``warmup_input`` is one raw input. With it ``open`` runs the model, failing with
    ``ConfigError`` if that fails, and ``calibrate`` can tell how long a call takes.

    ``optimize`` says what ``open`` may do to make the model faster: ``"auto"`` tries several
    things for ``optimize_seconds`` and keeps the fastest; ``"none"`` tries nothing; names out of
    ``"fuse"``, ``"channels_last"``, ``"freeze"``, ``"onednn"`` and ``"aot"``, joined by ``+`` or
    as a sequence, mean just that. Only what gives the model's own answers is used, and only for
    inputs of the warm-up's shape and dtype; docs/torch.md states the tolerance and how it is
    checked. ``"aot"`` needs ``isolation="process"``, and each needs a ``warmup_input``. What
    ``forward`` does besides computing, such as counting or printing, may be left out: then say
    ``"none"``.

    ``max_batch="auto"`` times batches of 1, 2, 4, ... up to 256 when opening, and takes the
    smallest with about the most images/s: within 0.25 s a call, or ``latency_target`` seconds. It
    is 1 until then, and without a ``warmup_input``.

    ``micro_batch`` is how many tasks the model gets at once at most: a call of ``infer`` with more
    runs them in parts, one after another, and gives all results when the last one is done. A model
    is fastest at some size, beyond which what it computes with no longer fits in caches; while the
    hand-over to the thread and back, which takes the event loop up to a millisecond, is the cheaper
    the more tasks share it.

    ``malloc="auto"`` raises glibc's thresholds for giving memory back while such a driver is open;
    ``"none"`` leaves them as they are.

    ``isolation="process"`` runs all of it in a process of its own: a crash there is a
    ``DeviceLost``, a call that hangs can be ended, and several such drivers use several cores even
    where Python code holds them up. Model, steps and warm-up input must be picklable.

    ``max_wait`` and ``latency_target``, in seconds, are kept for the scheduler: how long a batch
    may wait to become fuller, and how long a task may take.

    ``details`` tells what was chosen: ``optimize``, ``gain`` (images/s by those of the model as it
    is), ``max_batch``, ``micro_batch`` if given, ``threads``, ``isolation``, ``malloc``. Empty
    until it was opened once.

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
        max_batch: int | Literal["auto"] = 1,
        micro_batch: int | None = None,
        preprocess: Callable[[Any], Any] | str | None = None,
        postprocess: Callable[[Any], Any] | str | None = None,
        collate: Callable[[Sequence[Any]], Any] | str | None = None,
        uncollate: Callable[[Any], Sequence[Any]] | str | None = None,
        warmup_input: Any = None,
        optimize: str | Sequence[str] = "auto",
        optimize_seconds: float = 3.0,
        malloc: Literal["auto", "none"] = "auto",
        isolation: Literal["thread", "process"] = "thread",
        slowdown: float = 1.0,
        concurrency: int = 1,
        max_wait: float = 0.0,
        latency_target: float | None = None,
        close_timeout: float = 10.0,
    ) -> None:
        check_name(device)
        if max_batch != "auto":
            _at_least_one("max_batch", max_batch)
        counts = {"threads": threads, "concurrency": concurrency, "micro_batch": micro_batch}
        for option, value in counts.items():
            _at_least_one(option, value)
        if not slowdown >= 1:
            raise ConfigError(f"slowdown must be at least 1, not {slowdown!r}")
        _one_of("malloc", malloc, ("auto", "none"))
        _one_of("isolation", isolation, ("thread", "process"))
        plans = plans_of(optimize)
        if isolation == "thread" and any("aot" in plan for plan in plans or ()):
            raise ConfigError(
                "optimize: what aot compiles stops the event loop while it runs in a thread; "
                "set isolation='process'"
            )
        self.name = device if name is None else name
        #: tasks a call takes; with ``"auto"`` known once it is open
        self.max_batch = 1 if max_batch == "auto" else max_batch
        self.concurrency = concurrency
        self.max_wait = max_wait
        self.latency_target = latency_target
        self._spec = Spec(
            name=self.name,
            model=model,
            device=device,
            threads=threads,
            max_batch=None if max_batch == "auto" else max_batch,
            micro_batch=micro_batch,
            steps=Steps.given(preprocess, postprocess, collate, uncollate),
            warmup_input=warmup_input,
            slowdown=slowdown,
            plans=plans,
            optimize_seconds=optimize_seconds,
            malloc=malloc == "auto",
            isolated=isolation == "process",
            latency_target=latency_target,
        )
        #: what was chosen when it last opened, and what it gained
        self.details: Mapping[str, str | float] = {}
        self._isolation = isolation
        self._close_timeout = close_timeout
        self._session: Host | None = None

    @classmethod
    def discover(cls) -> list[dict[str, Any]]:
        """The torch devices of this host: ``name``, as ``device`` takes it, and ``description``."""
        return describe(*available(), usable_cores())

    async def open(self) -> None:
        """Start the thread or process, load the model, run and optimise it if there is an input.

        Raises ``ConfigError`` if the device is not available or the model cannot be loaded or run,
        ``DeviceLost`` for the device's own faults.
        """
        if self._session is not None and self._session.opened:
            return
        await self.close()
        host = ThreadHost if self._isolation == "thread" else ProcessHost
        session = self._session = host(self._spec)
        try:
            await session.open()
        except BaseException:
            await self.close()
            raise
        if self._session is not session:
            raise DeviceLost(self.name, "closed while it was opening")
        self.max_batch, self.details = session.max_batch, session.details

    async def close(self) -> None:
        """End the thread or process and release the model. Idempotent.

        Raises ``DeviceTimeout`` if a call in a thread still runs after ``close_timeout`` seconds.
        """
        session, self._session = self._session, None
        if session is not None:
            await session.close(self._close_timeout)

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; one output, or the exception that is that task's fault, for each."""
        return await self._opened().run(batch)

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with ``warmup_input``, hand-over and ``slowdown`` included.

        Takes about a second at most, or two calls where those are longer. ``None`` without a
        ``warmup_input``.
        """
        session = self._opened()
        if session.warmup is None:
            return None
        return await measured(self.infer, session.warmup, self.max_batch)

    async def probe(self) -> None:
        """Compute something small once the thread is free; ``DeviceLost`` if that fails."""
        await self._opened().probe()

    def _opened(self) -> Host:
        if self._session is None or not self._session.opened:
            raise DeviceLost(self.name, "not open")
        return self._session


def _at_least_one(option: str, value: object) -> None:
    if value is not None and not (isinstance(value, int) and value >= 1):
        raise ConfigError(f"{option} must be a whole number of at least 1, not {value!r}")


def _one_of(option: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} must be {' or '.join(map(repr, known))}, not {value!r}")
