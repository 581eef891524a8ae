"""What the outcome of a call means for its tasks. All of it is synchronous."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from asyncinfer._core.devices.device import Burst, Device, put_back
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.dispatch.retries import POISON, Retries, strikes
from asyncinfer._core.tasks.recorder import Recorder
from asyncinfer._core.tasks.spans import Run, Span
from asyncinfer.errors import ConfigError, DeviceError, InputError, PoisonTask, TaskError

__all__ = ("Outcomes", "has_errors")


class Outcomes:
    """Decides what becomes of tasks: delivered to their lane, tried again, or failed for good.

    Whatever ends or interrupts a call comes here: results, errors, a lost device, a time limit, a
    caller that is gone. No method waits, and each leaves tasks and devices consistent; so a
    coroutine that calls one needs no lock.
    """

    def __init__(
        self,
        roster: Roster,
        retries: Retries,
        trust: Trust,
        recorder: Recorder,
        clock: Callable[[], float],
        *,
        most_retries: int,
        wake: Callable[[], None],
        brought: Callable[[Burst, int], None] | None = None,
    ) -> None:
        self._roster = roster
        self._retries = retries
        self._trust = trust
        self._recorder = recorder
        self._clock = clock
        self._most_retries = most_retries
        self._wake = wake
        #: is told of each burst, and how many of its calls have brought results
        self._brought = brought

    # ---- a call has ended

    def pass_on(self, burst: Burst, started: float) -> None:
        """Give the lane the outputs that came since the last time, of calls begun at ``started``.

        Does nothing if the tasks were taken away from the burst.
        """
        if not burst.outputs or not burst.live:
            return
        run = Run(burst.device.name, started, burst.call_began)
        some_failed = has_errors(burst.outputs)
        mixed = some_failed and self._count_errors(burst)
        finished: list[Span] = []
        for span in burst.take_finished():
            if span.done:  # it has an outcome already, or nobody wants it
                continue
            span.run = run
            if some_failed:
                finished += self._succeeded(burst.device, span, mixed)
            else:
                finished.append(span)
        if burst.doubts is not None:
            self._settle_doubts(burst.doubts, some_failed)
        if finished:
            self._trust.worked(burst.device, finished)
            burst.lane.finish(finished)
            if burst.tasks_run < burst.tasks and finished[0].future is not None:
                self._wake()  # answered calls make room for others before the burst is over
        if self._recorder.observed:
            for span in finished:
                self._recorder.task_event("task.finished", span)

    def _succeeded(self, device: Device, span: Span, mixed: bool) -> Iterator[Span]:
        """Yield the tasks that have a result; those that have an error instead fail, each alone.

        ``mixed`` says whether the same calls brought results too.
        """
        for task in span.singles():
            error = task.outputs[0]
            if isinstance(error, BaseException):
                device.count_error()
                self._attempt_failed(task, error, task.run, mixed=mixed)
            else:
                yield task

    def _count_errors(self, burst: Burst) -> bool:
        """Count the outputs that are errors; return whether there are others."""
        errors = sum(isinstance(output, BaseException) for output in burst.outputs)
        burst.failed += errors
        return errors < len(burst.outputs)

    def raised(self, burst: Burst, error: Exception) -> None:
        """The model raised ``error`` in the present call.

        A single task failed by that. Of several tasks each is run again alone, which shows the one
        that is to blame. For a ``ConfigError`` none is: all of them failed by it.
        """
        if not burst.live:
            return
        self.pass_on(burst, burst.began)
        run = Run(burst.device.name, burst.call_began, self._clock())
        tasks = burst.take_running()
        if len(tasks) == 1 or isinstance(error, ConfigError):
            burst.device.count_error()
            for task in tasks:
                self._attempt_failed(task, error, run)
            return
        for task in tasks:
            if not task.done:  # else its copy has given the result, and that is what its run tells
                task.interrupted(run)
        self._failed_together(burst, tasks, error)

    def _failed_together(self, burst: Burst, tasks: list[Span], error: Exception) -> None:
        """Have tasks of one call that raised run again, in one call elsewhere or each alone.

        Those that failed before are run alone in any case.
        """
        device, now = burst.device, self._clock()
        tasks = [t for t in tasks if not (t.done or self._runs_elsewhere(t, device.name))]
        self._trust.failed(device)
        if burst.doubts is not None:
            self._settle_doubts(burst.doubts, True)
        elif self._trust.blames(device) and self._trust.others_for_batches(device, now):
            first = [task for task in tasks if not task.causes]
            tasks = [task for task in tasks if task.causes]
            self._retries.queue_together(first, (device, error))
        for task in tasks:
            self._retries.queue(task, alone=True)

    def _settle_doubts(self, doubts: tuple[Device, BaseException], failed: bool) -> None:
        """Tasks that failed together on a device were run together elsewhere."""
        device, error = doubts
        if failed:
            device.record.own_fault()
        else:
            self._trust.blame(device, error)

    def call_ended(self, burst: Burst) -> None:
        """The burst's runner ends: free the device; tasks that were not run go elsewhere."""
        self.pass_on(burst, burst.began)
        self._count_results(burst)
        burst.device.release(burst, self._clock())
        if burst.alarm is not None:
            burst.alarm.cancel()
        if burst.live and burst.spans:
            self._reassign(burst.device, burst.take_rest())
        self._wake()

    def _count_results(self, burst: Burst) -> None:
        """Take what the burst has done into the device's figures, unless that was done before."""
        calls = burst.calls
        if calls and burst.live:
            burst.device.count_results(burst, calls)
            self._recorder.count_run(burst.began, burst.call_began)
            if self._brought is not None:
                self._brought(burst, calls)

    # ---- a device loses its tasks

    def take_back(self, device: Device, error: DeviceError | None = None) -> list[Burst]:
        """Take all tasks from a device that failed with ``error``, or that is being removed.

        For the tasks in its present calls, ``error`` is a failed attempt. All other tasks go to
        other devices. Returns the bursts, which were cancelled.
        """
        now = self._clock()
        bursts = list(device.bursts)
        in_standing = error is None or not bursts or self._trust.lost(device, error)
        for burst in bursts:
            self.pass_on(burst, burst.began)
            self._count_results(burst)
            burst.live = False
            device.release(burst, now)
            run = Run(device.name, burst.call_began, now)
            running = burst.take_running()
            for task in running:
                if error is not None:
                    self._attempt_failed(task, error, run, in_standing=in_standing)
                elif not task.done:
                    task.interrupted(run)
            rest = burst.take_rest()
            self._reassign(device, rest if error else [*running, *rest])
            burst.cancel()
        self._wake()
        return bursts

    def _reassign(self, device: Device, tasks: list[Span]) -> None:
        """Let other devices run tasks that were taken from ``device``.

        Those that never failed wait in their lanes again; those that did are run alone.
        """
        tasks = [task for task in tasks if not self._runs_elsewhere(task, device.name)]
        put_back([task for task in tasks if not task.causes])
        for task in tasks:
            if task.causes and not task.done:
                self._retries.queue(task)

    def abandon(self, burst: Burst) -> bool:
        """Cancel a call that nobody waits for; its device stays busy until the call has ended.

        Returns whether it was cancelled just now, and not before.
        """
        runner = burst.runner
        if runner is None or runner.cancelling():
            return False
        burst.cancel()
        if _unstarted(runner):
            self.call_ended(burst)  # a runner cancelled before it starts does not do so itself
        return True

    def abandon_unwanted(self) -> None:
        """Cancel every call that nobody waits for any more."""
        self._retries.forget_done()
        for burst in self._roster.bursts:
            if burst.abandoned:
                self.give_up(burst)
        self._wake()

    def give_up(self, burst: Burst) -> None:
        """Cancel a call that nobody waits for, and note that its device has not answered it."""
        if self.abandon(burst):
            now = self._clock()
            burst.device.went_unanswered(burst.running, now - burst.call_began, now)

    # ---- a task has failed

    def _attempt_failed(
        self,
        task: Span,
        error: BaseException,
        run: Run,
        *,
        mixed: bool = False,
        in_standing: bool | None = None,
    ) -> None:
        """One attempt of a single task failed: run it again, or end it with its error.

        ``mixed`` says whether the same call brought results of other tasks, and ``in_standing``
        whether its device was in standing, if that was found out before.
        """
        if task.done:
            return
        refused_anew = isinstance(error, ConfigError) and run.device not in task.devices
        looks = isinstance(error, InputError) and self._looks_elsewhere(task, run.device, mixed)
        task.attempt_failed(error, run)
        if in_standing is None:
            in_standing = self._trusted(run.device, error, mixed, looks)
        blamed = isinstance(error, DeviceError | ConfigError) or not in_standing
        if blamed and self._runs_elsewhere(task, run.device):
            task.spared += 1  # a copied task has failed only once both of its calls have
            return
        if (looks and not self._was_spared(task)) or (refused_anew and self._may_try_another(task)):
            task.spared += 1
        if strikes(task) >= POISON:
            text = f"{POISON} devices were lost while it ran"
            self._recorder.quarantined += 1
            self._fail_for_good([task], run.finished, PoisonTask, text, error)
        elif self._ends(task, error, in_standing, looks):
            if len(task.causes) > 1 or not isinstance(error, InputError):
                self._trust.gave_up(task)
            self._fail_for_good([task], run.finished, TaskError, "", error)
        else:
            self._recorder.retried += 1
            self._retry(task, run.device, blamed=not in_standing)
            self._recorder.task_event("task.retried", task, error)

    def _looks_elsewhere(self, task: Span, device: str, mixed: bool) -> bool:
        """Whether another device is to be asked about an input that this one calls bad.

        No other is where one failed it before.
        """
        if self._roster.stateful or any(_is_tasks_own(cause) for cause in task.causes):
            return False
        return not self._trust.believes(device, task.devices, mixed=mixed)

    def _was_spared(self, task: Span) -> bool:
        """Whether an attempt of the task did not count, and not since a device was not set up."""
        return task.spared > sum(isinstance(cause, ConfigError) for cause in task.causes)

    def _ends(self, task: Span, error: BaseException, in_standing: bool, looks: bool) -> bool:
        """Whether the task ends with this error of a device that was, or was not, in standing.

        ``looks`` says whether another one is asked if the input is bad: that is one more attempt,
        which counts if one was spared before.
        """
        if looks:
            return task.attempts > self._most_retries
        said_before = any(isinstance(cause, InputError) for cause in task.causes)
        if said_before and in_standing and _is_tasks_own(error):
            return True
        return self._is_final(task, error) and (in_standing or not self._spares(task, error))

    def _trusted(self, device: str, error: BaseException, mixed: bool, looks: bool) -> bool:
        """Whether the device was in standing before it failed a task with ``error``.

        ``looks`` says whether another one is asked if the input is bad.
        """
        if isinstance(error, InputError) and not looks:
            return True
        return self._trust.failed(self._roster.named(device), mixed=mixed)

    def _spares(self, task: Span, error: BaseException) -> bool:
        """Let a task's last attempt not count, as the device was most likely to blame.

        That is so once for each task, and only while a healthy device is up that has not failed it.
        """
        if task.spared or self._roster.stateful or isinstance(error, InputError):
            return False
        spares = self._trust.may_spare(task)
        task.spared += spares
        return spares

    def _is_final(self, task: Span, error: BaseException) -> bool:
        """Whether the task is not to be tried again after this error."""
        if self._roster.stateful or isinstance(error, InputError):
            return True  # a stateful device has changed by the attempt, and no other knows as much
        if isinstance(error, ConfigError) and not self._may_try_another(task):
            return True
        return task.attempts > self._most_retries

    def _may_try_another(self, task: Span) -> bool:
        """Whether there is a device that has not refused the task with a ``ConfigError``."""
        met = zip(task.devices, task.causes, strict=True)
        refused = {device for device, cause in met if isinstance(cause, ConfigError)}
        return any(device.name not in refused for device in self._roster.members)

    def _retry(self, task: Span, device: str, *, blamed: bool) -> None:
        """Have the task run again, unless it still runs on a device other than ``device``."""
        if not self._runs_elsewhere(task, device):
            self._retries.queue(task, blamed=blamed)

    def _runs_elsewhere(self, task: Span, device: str) -> bool:
        """Whether the task, or the copy of it, runs on a device other than ``device``."""
        if not task.copied:
            return False
        others = [burst for burst in self._roster.bursts if burst.device.name != device]
        return any(task in burst.spans for burst in others if burst.live)

    def expire(self, spans: Iterable[Span], kind: type[TaskError], text: str) -> None:
        """End every task of ``spans`` with an error, wherever it is now."""
        now = self._clock()
        for span in spans:
            if span.done:
                continue
            span.lane.withdraw(span)
            self._fail_for_good(span.singles(), now, kind, text)
            span.settle()  # it stays where it is queued or running, and is skipped there
        self.abandon_unwanted()

    def _fail_for_good(
        self,
        tasks: list[Span],
        now: float,
        kind: type[TaskError],
        text: str,
        last: BaseException | None = None,
    ) -> None:
        """End single tasks of one lane with errors of class ``kind``; ``last`` is for the event."""
        for task in tasks:
            task.fail(now, kind, text)
            if kind is PoisonTask:
                self._recorder.task_event("task.quarantined", task, task.error)
        self._recorder.failed += len(tasks)
        tasks[0].lane.finish(tasks)
        for task in tasks:
            self._recorder.task_event("task.failed", task, last or task.error)


def _is_tasks_own(error: BaseException) -> bool:
    """Whether the error is that of a model or its input, and says nothing against the device."""
    return not isinstance(error, DeviceError | ConfigError)


def has_errors(outputs: list[Any]) -> bool:
    """Whether any of the outputs is an error instead."""
    for kind in set(map(type, outputs)):  # noqa: SIM110  # a generator costs more than most calls
        if issubclass(kind, BaseException):
            return True
    return False


def _unstarted(runner: asyncio.Task[None]) -> bool:
    coro = runner.get_coro()
    return inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
