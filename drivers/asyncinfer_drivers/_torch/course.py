"""A long piece of work in steps, so that calls can be made between them and beside some."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from asyncinfer_drivers._torch.threads import bind

__all__ = ("Course", "Job", "Steps", "finished")

T = TypeVar("T")
#: a part that takes long, and touches nothing that calls use: it may run in a thread of its own
Job: TypeAlias = Callable[[], Any]
#: at each ``yield None`` calls may be made; what a job that is yielded gives or raises comes back
Steps: TypeAlias = Generator[Job | None, Any, T]


def finished(steps: Steps[T]) -> T:
    """All steps at once, in this thread."""
    course = Course(steps)
    course.finish()
    return course.value


class Course(Generic[T]):
    """Takes ``steps`` one at a time, in inference mode."""

    value: T

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        #: what the last job has given, or raised
        self._given: tuple[Any, BaseException | None] = (None, None)
        self._beside: tuple[threading.Thread, Future[None]] | None = None
        self._spent = 0.0
        self._began: float | None = None
        self.over = False

    def clock(self) -> float:
        """Seconds that this work has taken of its thread's so far."""
        began = self._began
        return self._spent + (0.0 if began is None else time.perf_counter() - began)

    def finish(self) -> None:
        """Take all steps that are left, in this thread."""
        if self._beside is not None:
            self._beside[0].join()
        while not self.over:
            self.step(beside=False)

    def step(self, *, beside: bool = True) -> bool:
        """Take one; false if a job still runs beside. Raises what the steps raise."""
        if self._beside is not None:
            if not self._beside[1].done():
                return False
            self._beside = None
        self._began = time.perf_counter()
        try:
            job = self._advance()
            if job is not None and not beside:
                self._do(job)
        finally:
            self._spent, self._began = self.clock(), None
        if job is not None and beside:
            self._begin(job)
        return True

    def close(self) -> None:
        """End it where it is; a job that runs beside is waited for."""
        self.over = True
        if self._beside is not None:
            self._beside[0].join()
            self._beside = None
        self._steps.close()

    def _advance(self) -> Job | None:
        (value, error), self._given = self._given, (None, None)
        try:
            with torch.inference_mode():
                return self._steps.send(value) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self.over, self.value = True, end.value
            return None
        except BaseException:
            self.over = True
            raise

    def _do(self, job: Job) -> None:
        try:
            with torch.inference_mode():
                self._given = job(), None
        except BaseException as error:
            self._given = None, error

    def _begin(self, job: Job) -> None:
        done: Future[None] = Future()

        def run() -> None:
            bind(1)  # calls are made meanwhile
            self._do(job)
            done.set_result(None)

        thread = threading.Thread(target=run, name="asyncinfer-search", daemon=True)
        self._beside = thread, done
        thread.start()
