"""A schedule: everything that will happen in one simulated run, as a plain value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

__all__ = (
    "STEPS",
    "Add",
    "BadInput",
    "Broken",
    "CallFault",
    "Calls",
    "Cancel",
    "Claim",
    "Close",
    "CloseFault",
    "Cores",
    "DevicePlan",
    "Drain",
    "Flap",
    "Leap",
    "Leave",
    "OpenFault",
    "Outage",
    "Remove",
    "ResetFault",
    "Schedule",
    "Settings",
    "Slow",
    "Step",
    "Stream",
)


@dataclass(frozen=True)
class Settings:
    """The dispatcher's arguments, and how long after the last step all faults end."""

    policy: str = "eft"
    window: int = 100
    queue_size: int = 100
    retries: int = 2
    open: float | None = 5.0
    queue: float | None = None
    run: float | Literal["auto"] | None = "auto"
    total: float | None = None
    close: float = 3.0
    drain: float | None = 1000.0
    hedged: bool = False
    heal_after: float = 50.0
    #: of each host
    cores: float = 2.0
    contention: float = 0.0
    #: whether the devices remember what came before: each stream has one to itself
    stateful: bool = False


@dataclass(frozen=True)
class DevicePlan:
    """A device, as long as it is well. Times in seconds."""

    name: str
    service_time: float = 0.01
    noise: float = 0.0
    batch_cost: float = 0.0
    max_batch: int = 1
    concurrency: int = 1
    max_wait: float = 0.0
    latency_target: float | None = None
    #: what it says of its service time when it opens: nothing if ``None``
    estimate: float | None = None
    open_seconds: float = 0.0
    close_seconds: float = 0.0
    #: the name of the host it is on, with others; none if empty
    host: str = ""
    #: of its host that a call wants
    cores: float = 1.0
    #: what it says that it shares; its host if ``None``
    claims: str | None = None


@dataclass(frozen=True)
class Step:
    """Something that is done to the dispatcher, or to a device, at a time."""

    at: float = 0.0


@dataclass(frozen=True)
class Claim:
    """What a stream or a call may claim of the devices."""

    share: float = 1.0
    priority: int = 0
    #: whose it is, from the whole to the part; nobody's if empty
    client: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of ``infer`` and ``stream``."""
        path = tuple(self.client.split("/")) if self.client else None
        return {"share": self.share, "priority": self.priority, "client": path}


@dataclass(frozen=True)
class Stream(Step):
    """A stream and its consumer."""

    tasks: int = 10
    ordered: bool = True
    #: list, generator, async, or stubborn: one that ignores its cancellation for a while
    source: str = "generator"
    source_pause: float = 0.0
    #: a longer pause before one of its inputs
    stall_before: int = -1
    stall: float = 0.0
    source_fails: bool = False
    #: how it is read: results, errors (returned), raises
    read: str = "results"
    #: how the reading ends: all, break, aclose, cancel, drop, body (an exception in it)
    end: str = "all"
    #: ... after so many results, or after so many seconds
    after: int = 0
    patience: float = 0.0
    consumer_pause: float = 0.0
    claim: Claim = Claim()


@dataclass(frozen=True)
class Calls(Step):
    """Several ``infer`` calls at once; those with patience are cancelled when it ends."""

    count: int = 1
    patience: float | None = None
    claim: Claim = Claim()


@dataclass(frozen=True)
class Add(Step):
    """A device is plugged in."""

    device: DevicePlan = DevicePlan("extra")
    #: seconds after which the caller is cancelled
    patience: float | None = None


@dataclass(frozen=True)
class Remove(Step):
    """A device is taken out, by name."""

    device: str = ""
    drain: bool = True
    #: seconds after which the caller is cancelled
    patience: float | None = None


@dataclass(frozen=True)
class CallFault(Step):
    """What goes wrong with one call of a device, and at which part of its time."""

    device: str = ""
    call: int = 0
    kind: str = "crash"
    part: float = 0.5
    #: seconds or a factor, as the kind may be
    amount: float = 1.0


@dataclass(frozen=True)
class OpenFault(Step):
    """What goes wrong with one opening of a device."""

    device: str = ""
    opening: int = 0
    kind: str = "lost"
    amount: float = 1.0


@dataclass(frozen=True)
class CloseFault(Step):
    """What goes wrong with one closing of a device."""

    device: str = ""
    closing: int = 0
    kind: str = "hang"
    amount: float = 1.0


@dataclass(frozen=True)
class ResetFault(Step):
    """What goes wrong when a device that remembers is reset, as a stream begins."""

    device: str = ""
    reset: int = 0
    kind: str = "lost"
    amount: float = 1.0


@dataclass(frozen=True)
class BadInput(Step):
    """An input that fails, or kills, whatever runs it."""

    stream: int = 0
    index: int = 0
    kind: str = "model"


@dataclass(frozen=True)
class Outage(Step):
    """A device is gone for a while: what runs there fails at once, and it cannot be opened."""

    device: str = ""
    seconds: float = 1.0


@dataclass(frozen=True)
class Flap(Step):
    """For a while a device opens and dies in its next call."""

    device: str = ""
    seconds: float = 1.0


@dataclass(frozen=True)
class Broken(Step):
    """From its n-th call on, and for so many, a device fails a share of its tasks, at once or not.

    It raises, or puts errors in the places of outputs, and may call the inputs bad.
    """

    device: str = ""
    share: float = 1.0
    after: int = 0
    calls: int = 1_000_000
    raises: bool = True
    at_once: bool = True
    refuses: bool = False


@dataclass(frozen=True)
class Slow(Step):
    """From now on a device needs so many times its time."""

    device: str = ""
    factor: float = 10.0


@dataclass(frozen=True)
class Cores(Step):
    """From now on a host has so many cores: something else wants the others."""

    host: str = ""
    cores: float = 1.0


@dataclass(frozen=True)
class Leap(Step):
    """The clock leaps ahead, as after a suspended machine."""

    seconds: float = 1.0


@dataclass(frozen=True)
class Drain(Step):
    """``drain(timeout)``."""

    timeout: float | None = None


@dataclass(frozen=True)
class Close(Step):
    """``close()``."""


@dataclass(frozen=True)
class Leave(Step):
    """The body of ``async with`` ends, by an error or not."""

    error: bool = False


@dataclass(frozen=True)
class Cancel(Step):
    """The asyncio task that is in ``async with`` is cancelled: opening, inside, or leaving."""


STEPS: dict[str, type[Step]] = {
    kind.__name__: kind
    for kind in (
        Stream, Calls, Add, Remove, CallFault, OpenFault, CloseFault, ResetFault, BadInput,
        Outage, Flap, Broken, Slow, Cores, Leap, Drain, Close, Leave, Cancel,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """All of it."""

    settings: Settings = Settings()
    devices: tuple[DevicePlan, ...] = (DevicePlan("d0"),)
    steps: tuple[Step, ...] = ()

    def but(self, **changes: Any) -> Schedule:
        """The same with something changed."""
        return replace(self, **changes)

    def dumps(self) -> str:
        """As JSON, without what is as by default."""
        steps = [{"step": type(step).__name__} | _shown(step) for step in self.steps]
        devices = [_shown(device) for device in self.devices]
        return json.dumps({"settings": _shown(self.settings), "devices": devices, "steps": steps})

    @classmethod
    def loads(cls, text: str) -> Schedule:
        """The schedule that ``dumps`` told of."""
        told = json.loads(text)
        devices = tuple(DevicePlan(**device) for device in told["devices"])
        return cls(Settings(**told["settings"]), devices, tuple(map(_step, told["steps"])))


def _shown(what: Any) -> dict[str, Any]:
    shown = asdict(what)
    for field in fields(what):
        if getattr(what, field.name) == field.default:
            del shown[field.name]
    return shown


def _step(told: dict[str, Any]) -> Step:
    arguments = dict(told)
    kind = STEPS[arguments.pop("step")]
    if isinstance(arguments.get("device"), dict):
        arguments["device"] = DevicePlan(**arguments["device"])
    if "claim" in arguments:
        arguments["claim"] = Claim(**arguments["claim"])
    return kind(**arguments)
