"""One task on its way through the dispatcher."""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import Any, NamedTuple, Protocol

from asyncinfer.errors import TaskError

__all__ = ("NOT_RUN", "Run", "Task", "TaskHome")


class TaskHome(Protocol):
    """What a task needs of the lane it belongs to."""

    number: int
    #: that of the stream's consumer when it began
    context: contextvars.Context

    def finish(self, tasks: list[Task]) -> None:
        """Take the results or errors of some of its tasks."""
        ...

    def give_back(self, tasks: list[Task]) -> None:
        """Take back tasks that were not started."""
        ...


class Run(NamedTuple):
    """One attempt, shared by the tasks that were run together. Seconds on the loop's clock."""

    device: str
    started: float
    finished: float


NOT_RUN = Run("", math.nan, math.nan)


class Task:
    """An input with its index, and what has become of it."""

    __slots__ = (
        "causes",
        "context",
        "devices",
        "done",
        "error",
        "future",
        "index",
        "input",
        "lane",
        "run",
        "submitted",
        "value",
    )

    def __init__(self, lane: TaskHome, index: int, value: Any, submitted: float) -> None:
        self.lane = lane
        self.index = index
        self.input = value
        self.submitted = submitted
        #: the output, or the error it ended with
        self.value: Any = None
        self.error: TaskError | None = None
        self.done = False
        #: the last attempt
        self.run = NOT_RUN
        #: what failed attempts met, and where
        self.causes: tuple[BaseException, ...] = ()
        self.devices: tuple[str, ...] = ()
        #: set for tasks of ``infer``: where the answer goes, and the caller's context
        self.future: asyncio.Future[Any] | None = None
        self.context: contextvars.Context | None = None

    @property
    def attempts(self) -> int:
        """How often it was run to an end."""
        return len(self.causes) + (self.done and self.error is None)

    def note(self, cause: BaseException, run: Run) -> None:
        """Remember a failed attempt."""
        self.run = run
        self.causes = (*self.causes, cause)
        self.devices = (*self.devices, run.device)

    def fail(self, now: float, kind: type[TaskError] = TaskError, message: str = "") -> None:
        """Make the error this task ends with out of what it met."""
        self.run = self.run._replace(finished=now)
        self.value = self.error = kind(
            self.index, self.attempts, self.causes, self.devices, message
        )
