"""Every error asyncinfer raises, in one tree.

AsyncInferError
├── ConfigError            what was asked for cannot be set up
├── ClosedError            the dispatcher no longer accepts or finishes work
├── InputError             raised by drivers: no device could take this input
├── DeviceError(device)    the device's fault: its tasks move to another device
│   ├── DeviceLost         it is gone: unplugged, killed, unreachable
│   ├── DeviceTimeout      it did not answer in time (phase: open, run, close)
│   └── ProtocolError      it answered, but not what the contract says
└── TaskError(index)       the one error a task ends with
    ├── PoisonTask         device after device was lost while it ran
    ├── StateLost          the device that held its stream's state is gone
    ├── QueueTimeout       no device took it in time
    ├── DeadlineExceeded   its overall deadline passed
    └── NoDeviceError      its time ran out with no device left to run it
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = (
    "AsyncInferError",
    "ClosedError",
    "ConfigError",
    "DeadlineExceeded",
    "DeviceError",
    "DeviceLost",
    "DeviceTimeout",
    "InputError",
    "NoDeviceError",
    "PoisonTask",
    "ProtocolError",
    "QueueTimeout",
    "StateLost",
    "TaskError",
)


class AsyncInferError(Exception):
    """Root of every error of this package."""


class ConfigError(AsyncInferError):
    """What was asked for cannot be set up: an unknown device, a misspelt option, a bad value.

    Raised by a driver's ``infer`` it means that this device is not set up for the task: the task is
    run on other devices, which costs it no attempt, and not on this one again.
    """


class ClosedError(AsyncInferError):
    """The dispatcher is closed or closing, so the work was not accepted or not finished."""


class InputError(AsyncInferError):
    """The input is wrong in itself (shape, dtype, unreadable file), on whatever device.

    Drivers raise it, or put it in the output in that task's place. Such a task is not retried, but
    for one look on another device, until the first one was right about some.
    """


class DeviceError(AsyncInferError):
    """The device failed, not the task: the task moves on, the device is reopened."""

    def __init__(self, device: str, message: str = "failed") -> None:
        super().__init__(device, message)
        #: the device's name
        self.device = device
        #: what happened, in words
        self.message = message

    def __str__(self) -> str:
        return f"device {self.device!r}: {self.message}"


class DeviceLost(DeviceError):
    """The device is gone: port closed, process ended, host unreachable."""


class DeviceTimeout(DeviceError):
    """The device did not finish within its time limit."""


class ProtocolError(DeviceError):
    """The device answered against its contract: bad checksum, wrong number of results."""


class TaskError(AsyncInferError):
    """A task failed for good, alone; the rest of its stream goes on."""

    def __init__(
        self,
        index: int,
        attempts: int,
        causes: Sequence[BaseException] = (),
        devices: Sequence[str] = (),
        message: str = "",
    ) -> None:
        super().__init__(index, attempts, tuple(causes), tuple(devices), message)
        #: place of the task in its stream; for ``infer``, among all calls
        self.index = index
        #: how often the task failed, ``retries + 1`` at most. Not counted is one whose device was
        #: lost while a copy of the task went on elsewhere, and one that ended with a
        #: ``ConfigError`` while another device might still take the task
        self.attempts = attempts
        #: every error the task met, oldest first. Those of attempts that are not counted are among
        #: them, so there may be more than ``attempts``
        self.causes = tuple(causes)
        #: the device of each cause
        self.devices = tuple(devices)
        #: what else there is to say, in words; often empty
        self.message = message
        if self.causes:
            self.__cause__ = self.causes[-1]

    def __str__(self) -> str:
        times = f"{self.attempts} attempt" + ("" if self.attempts == 1 else "s")
        head = f"task {self.index} failed after {times}"
        return ": ".join(part for part in (head, self.message, self._last_cause()) if part)

    def _last_cause(self) -> str:
        if not self.causes:
            return ""
        cause = self.causes[-1]
        text = " ".join(str(cause).split())
        if isinstance(cause, AsyncInferError):
            shown = text
        else:
            shown = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
        if self.devices and not isinstance(cause, DeviceError):
            return f"on {self.devices[-1]!r}: {shown}"
        return shown


class PoisonTask(TaskError):
    """Three different devices were lost while the task ran. It is not tried on a fourth.

    ``causes`` and ``devices`` tell how each was lost.
    """


class StateLost(TaskError):
    """What the task's stream has on its stateful device is lost, or lacks an earlier task.

    The device was lost or removed, or an earlier task of the stream ran out of time.

    Only drivers with ``stateful = True`` have it. A new stream begins anew.
    """


class QueueTimeout(TaskError):
    """The task waited longer than ``Timeouts.queue`` without being started."""


class DeadlineExceeded(TaskError):
    """The task was not finished within ``Timeouts.total``, which says from when that counts."""


class NoDeviceError(DeadlineExceeded):
    """The task's deadline passed while no device was able to run it."""
