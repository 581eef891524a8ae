"""What comes back for one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncinfer.errors import TaskError

__all__ = ("Result",)

OutT = TypeVar("OutT")


@dataclass(frozen=True, slots=True)
class Result(Generic[OutT]):
    """One task's outcome with its history. Times are seconds on the event loop's clock."""

    #: place of the task in its stream, from 0
    index: int
    #: what the driver returned; ``None`` if the task failed
    value: OutT | None
    #: why the task failed; ``None`` if it did not
    error: TaskError | None
    #: name of the device that ran it last; empty if none did
    device: str
    #: how many attempts came to an end, ``retries + 1`` at most. An attempt whose device was lost
    #: while a copy of the task went on elsewhere is not counted
    attempts: int
    #: when the task was accepted from the source
    submitted: float
    #: when the last attempt began; ``nan`` if there was none
    started: float
    #: when the last attempt ended, or when the task failed without one
    finished: float
    #: when the result was handed to the consumer
    delivered: float

    def unwrap(self) -> OutT:
        """Return the value, or raise the task's error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # no error: the driver's own value
