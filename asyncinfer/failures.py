"""What becomes of a task when an attempt failed, or when its device was taken from it."""

from __future__ import annotations

from asyncinfer.burst import give_back
from asyncinfer.device import Device
from asyncinfer.errors import DeviceError, InputError, PoisonTask
from asyncinfer.pool import Pool
from asyncinfer.quarantine import POISON, strikes
from asyncinfer.recorder import Recorder
from asyncinfer.span import Run, Span

__all__ = ("Failures",)


class Failures:
    """Decides whether a failed task is tried again, and ends it if not."""

    def __init__(self, recorder: Recorder, retries: int) -> None:
        self.pool: Pool
        self._recorder = recorder
        self._retries = retries

    def note(self, task: Span, error: BaseException, run: Run) -> None:
        """One attempt failed: try again elsewhere, or end the task with its error."""
        if task.done:
            return
        task.note(error, run)
        elsewhere = self._runs_elsewhere(task, run.device)
        if elsewhere and isinstance(error, DeviceError):
            task.spared += 1  # a task and its copy have failed when both have
            return
        poison = strikes(task) >= POISON
        if task.attempts > self._retries or poison or isinstance(error, InputError):
            self._end(task, error, run, poison=poison)
            return
        self._recorder.retried += 1
        self.again(task, run.device)
        self._recorder.task_event("task.retried", task, error)

    def _end(self, task: Span, error: BaseException, run: Run, *, poison: bool) -> None:
        """End the task with its error."""
        if poison:
            task.fail(run.finished, PoisonTask, f"{POISON} devices were lost while it ran")
            self._recorder.quarantined += 1
            self._recorder.task_event("task.quarantined", task, task.error)
        else:
            task.fail(run.finished)
        self._recorder.failed += 1
        task.lane.finish([task])
        self._recorder.task_event("task.failed", task, error)

    def again(self, task: Span, device: str) -> None:
        """Have it run again alone, unless it or its copy still runs on another device."""
        if not self._runs_elsewhere(task, device):
            self.pool.retries.add(task)

    def _runs_elsewhere(self, task: Span, device: str) -> bool:
        """Whether the task, or the copy of it, runs on another device too."""
        if not task.copied:
            return False
        others = [d for d in self.pool.roster.members if d.name != device]
        return any(task in burst.spans for other in others for burst in other.bursts if burst.live)

    def give_back(self, device: Device, tasks: list[Span]) -> None:
        """Tasks were taken from ``device``: others may start them, those once failed alone."""
        tasks = [task for task in tasks if not self._runs_elsewhere(task, device.name)]
        give_back([task for task in tasks if not task.causes])
        for task in tasks:
            if task.causes and not task.done:
                self.pool.retries.add(task)
