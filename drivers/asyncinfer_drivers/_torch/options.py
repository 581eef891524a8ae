"""The options of ``TorchDriver``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.options import StepOptions, TuningOptions
from asyncinfer_drivers._shared.sharing import SharingOptions
from asyncinfer_drivers._torch.device import check_name
from asyncinfer_drivers._torch.optimize import plans_of
from asyncinfer_drivers._torch.variants import Plan

__all__ = ("TorchOptions",)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How many tasks are run together."""

    #: tasks a call of ``infer`` takes at most. ``"auto"`` begins with 1, times batches of 1, 2, 4,
    #: ... up to 256 between calls, and takes the smallest with about the most images/s: within
    #: 0.25 s a call, or ``latency_target`` seconds. Where shapes of tasks differ, a call takes more
    #: of them, so that those of one shape meet
    max_batch: int | Literal["auto"] = "auto"
    #: tasks the model gets at once at most: a call of ``infer`` with more runs them in parts, one
    #: after another, and gives all results when the last one is done. A model is fastest at some
    #: size, beyond which what it computes with no longer fits in caches; while the hand-over to the
    #: thread and back, which takes the event loop up to a millisecond, is the cheaper the more
    #: tasks share it
    micro_batch: int | None = None
    #: ``"checked"``: tasks share a call only if their answers were seen to be those that each gets
    #: alone. ``"trusted"``: they do so too where answers depend a little on what else is in the
    #: batch, as with dynamic quantisation; it is not for outputs that cannot be told apart
    batching: Literal["checked", "trusted"] = "checked"
    #: ``infer`` calls accepted at once. The thread runs them one after another; 2 hides the
    #: hand-over between thread and event loop
    concurrency: int = 1
    #: seconds a task may wait for others to fill its batch; kept for the scheduler
    max_wait: float = 0.0
    #: seconds one call should take at most; kept for the scheduler
    latency_target: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the model runs."""

    #: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"mps"``, or ``"auto"``: the first there is of CUDA,
    #: MPS and CPU
    device: str = "cpu"
    #: intra-op threads on a CPU; by default the host's cores but one, which is left to the event
    #: loop, are divided among the CPU drivers that are open, as they come and go; each has at least
    #: one thread. If one thread, or a share of all cores, is measured to be faster by a tenth, that
    #: is taken. It holds for this driver only (on torch builds without OpenMP: for the whole
    #: process)
    threads: int | None = None
    #: ``"process"`` runs all of it in a process of its own: a crash there is a ``DeviceLost``, a
    #: call that hangs can be ended, and several such drivers use several cores even where Python
    #: code holds them up. Model, steps and warm-up input must be picklable
    isolation: Literal["thread", "process"] = "thread"
    #: stretches every call to that many times its own duration by sleeping in the thread. It makes
    #: a stand-in for a slower host in demos and tests, nothing else
    slowdown: float = 1.0
    #: seconds ``close`` waits for a call that runs
    close_timeout: float = 10.0


@dataclass(frozen=True, kw_only=True)
class TorchOptions(PlaceOptions, BatchOptions, TuningOptions, StepOptions, SharingOptions):
    """What ``TorchDriver`` takes."""

    #: what to run; see ``TorchDriver``
    model: Any = field(kw_only=False)
    #: the device's name; by default as ``device``
    name: str | None = None
    #: for a model that remembers what it was asked: each stream stays on one device, where the
    #: model begins it afresh, by its method ``reset``, ``reset_states`` or ``reset_state``, else
    #: as a copy of what was given. Tasks are run one by one, and no faster form is used. Without
    #: it such a model is a ``ConfigError``, when it is opened with a ``warmup_input``, or else in
    #: place of the first answers
    stateful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.device)
        if self.stateful and (self.size not in (None, 1) or self.concurrency != 1 or self.plans):
            raise ConfigError(
                "stateful=True runs the tasks of a stream one by one through the model as it is: "
                "leave max_batch, concurrency and optimize at their defaults"
            )

    @property
    def called(self) -> str:
        """The device's name."""
        return self.device if self.name is None else self.name

    @property
    def size(self) -> int | None:
        """``max_batch``, or ``None`` if it has to be found."""
        return None if self.max_batch == "auto" else self.max_batch

    @property
    def plans(self) -> tuple[Plan, ...] | None:
        """Forms of the model to use; ``None``: the fastest that is right."""
        return plans_of(self.optimize)

    @property
    def isolated(self) -> bool:
        """Whether it has a process to itself."""
        return self.isolation == "process"
