"""Devices that torch computes on: this host's CPU, CUDA and MPS."""

from __future__ import annotations

from typing import Any, Protocol

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.options import takes
from asyncinfer_drivers._shared.session import HostDriver, HostSession
from asyncinfer_drivers._torch.calling import described
from asyncinfer_drivers._torch.device import available, describe, shared_by
from asyncinfer_drivers._torch.hosts import ThreadHost
from asyncinfer_drivers._torch.options import TorchOptions as TorchOptions
from asyncinfer_drivers._torch.process import ProcessHost
from asyncinfer_drivers._torch.threads import usable_cores

__all__ = ("TorchDriver", "TorchOptions")


class _TorchSession(HostSession, Protocol):
    """A host whose model can begin a stream afresh, and be made faster."""

    async def reset(self) -> None: ...

    async def tune(self) -> None: ...


class TorchDriver(HostDriver[_TorchSession]):
    """Runs a torch model in a thread of its own.

    Its arguments are the fields of ``TorchOptions``, which says what each means. ``model`` is one
    of

    - an ``nn.Module``. It is never changed: each driver opens a copy of its own, with the hooks
      that are in it. In evaluation mode and on the right device the copy has the module's weights
      in common with it, so that several drivers take the memory of one; otherwise, when any part
      of it is in training mode or elsewhere, it has its own. What cannot be copied (a module that
      holds a lock, for instance) is used as it is, by one driver at a time: others raise
      ``ConfigError``;
    - the path of a TorchScript file or of a ``.pt2`` file from ``torch.export``. Such files are
      programs: load only those you trust;
    - a function without arguments that returns a module, or ``"module:function"`` to import it;
    - the name of a built-in model (entry-point group ``asyncinfer.models``) or such a model
      itself. It brings the steps around it and ``warmup_input`` where none are given.

    It is loaded by ``open``, in the thread, and released by ``close``.

    An input becomes one tensor: ``preprocess(input)``, or the input itself, may be a tensor, a
    numpy array, a number or nested lists of numbers. For a model that takes several it is a mapping
    of the arguments' names to these, or a tuple of tensors in the arguments' order; what is
    optional may be left out. Those of a batch that agree in shape and dtype are stacked to
    ``[n, *shape]``, moved to the device and run together; others run apart.
    The output is ``postprocess(row)``, or the row: the task's part of what the model returns, whose
    tensors are on the CPU, have memory of their own and no batch dimension. Which part that is is
    learnt from the model; see docs/torch.md.

    Faults of one task come back in its place, at every batch size: the exception that
    ``preprocess``, the model or ``postprocess`` raised, or an ``InputError`` for what is no tensor
    or has a shape or dtype that the model refuses after it has accepted another (the warm-up's,
    or that of an earlier task, or of the batch's majority). If a whole batch raises, its tasks
    run one by one. Only the device's own faults, such as CUDA errors and full memory, are raised,
    as ``DeviceLost``.

    It begins with the model as it is. What is faster (batches, a form, threads) is sought between
    calls, with the warm-up input or the first that the model has answered, and used as it is found;
    ``max_batch`` changes with it. A small model with a warm-up input is tried for up to 0.25 s
    while the driver opens. ``tune`` has all of it found at once.

    ``details`` tells what was chosen so far: ``optimize``, ``gain`` (images/s by those of the model
    as it is), ``max_batch``, ``batches`` if not all sizes are used, ``micro_batch`` if given,
    ``threads``, ``isolation``, ``malloc``, and ``device`` if another name was given. Empty until it
    was opened once.

    ``open`` raises ``ConfigError`` if the device is not available or the model cannot be loaded or
    run, ``DeviceLost`` for the device's own faults. Cancelling ``infer`` cannot interrupt a call
    that runs: the cancelled coroutine ends with it. ``close`` waits ``close_timeout`` seconds for
    a running call, then raises ``DeviceTimeout`` and leaves the thread to end with that call; it
    does not keep the interpreter from exiting. A process is ended instead.
    """

    @takes(TorchOptions)
    def __init__(self, options: TorchOptions) -> None:
        compiled = any("aot" in plan for plan in options.plans or ())
        if compiled and not options.isolated:
            raise ConfigError(
                "optimize: what aot compiles stops the event loop while it runs in a thread; "
                "set isolation='process'"
            )
        self._options = options
        self.name = options.called
        #: tasks a call takes; with ``"auto"`` it changes while it is open
        self.max_batch = options.size or 1
        self.concurrency = options.concurrency
        self.max_wait = options.max_wait
        self.latency_target = options.latency_target
        #: whether a stream has to stay on one device, and begins with ``reset``
        self.stateful = options.stateful
        self.shares = options.shares
        #: what was chosen since it last opened, and what it gained
        self.details = {}
        self._close_timeout = options.close_timeout

    @classmethod
    def discover(cls) -> list[dict[str, Any]]:
        """The torch devices of this host: ``name``, as ``device`` takes it, and ``description``."""
        return describe(*available(), usable_cores())

    @staticmethod
    def model_inputs(model: Any) -> list[dict[str, Any]]:
        """What ``model`` takes for one task, by its ``forward`` or its file: for who serves it.

        Of each input ``name``, whether it is ``optional``, and whether it is ``alone``: a tensor
        rather than one of several. ``dtype``, as numpy calls it, ``shape`` without the batch, with
        -1 where other sizes will do too, and ``sizes`` that do; ``None`` where only inputs would
        show. The model is loaded for that. Raises ``ConfigError`` if it cannot be.
        """
        return described(model)

    async def reset(self) -> None:
        """Have the model begin a new stream, if it is ``stateful``: as if it was asked nothing yet.

        Raises ``DeviceLost`` if it fails to.
        """
        await self._opened().reset()

    def _usually_shared(self) -> frozenset[str]:
        return shared_by(str(self.details.get("device", self._options.device)))

    async def tune(self) -> None:
        """Find now, rather than between calls, what is fastest: for measurements, or before a rush.

        Without an input to try things with, it returns at once.
        """
        await self._opened().tune()

    def _new_session(self) -> _TorchSession:
        host = ProcessHost if self._options.isolated else ThreadHost
        return host(self._options)
