"""One task on its way through the dispatcher."""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import Any, Protocol

from asyncinfer.errors import TaskError

__all__ = ("Task", "TaskHome")


class TaskHome(Protocol):
    """What a task needs of the lane it belongs to."""

    number: int

    def finish(self, task: Task) -> None:
        """Take the task's result or error."""
        ...

    def give_back(self, tasks: list[Task]) -> None:
        """Take back tasks that were not started."""
        ...


class Task:
    """An input with its index, and what has become of it.

    The defaults live on the class, so that making one costs four assignments.
    """

    value: Any = None
    error: TaskError | None = None
    done = False
    #: done, and an earlier task is not
    held = False
    device = ""
    attempts = 0
    started = math.nan
    finished = math.nan
    causes: tuple[BaseException, ...] = ()
    devices: tuple[str, ...] = ()
    #: set for tasks of ``infer``: where the answer goes, and the caller's context
    future: asyncio.Future[Any] | None = None
    context: contextvars.Context | None = None

    def __init__(self, lane: TaskHome, index: int, value: Any, submitted: float) -> None:
        self.lane = lane
        self.index = index
        self.input = value
        self.submitted = submitted

    def note(self, cause: BaseException, device: str) -> None:
        """Remember a failed attempt on ``device``."""
        self.attempts += 1
        self.device = device
        self.causes = (*self.causes, cause)
        self.devices = (*self.devices, device)

    def fail(self, kind: type[TaskError] = TaskError, message: str = "") -> None:
        """Make the error this task ends with out of what it met."""
        self.error = kind(self.index, self.attempts, self.causes, self.devices, message)
