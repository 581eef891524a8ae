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
    #: how often it was run to an end, ``retries + 1`` at most: that the device of one call was lost
    #: while a copy of the task went on elsewhere is not counted
    attempts: int
    #: accepted from the source
    submitted: float
    #: last attempt began; ``nan`` if there was none
    started: float
    #: last attempt ended, or the error was decided
    finished: float
    #: handed to the consumer
    delivered: float

    def unwrap(self) -> OutT:
        """Return the value, or raise the task's error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # no error: the driver's own value
