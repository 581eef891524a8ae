"""Runs tasks on devices, and decides what their outcome means."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

from asyncinfer.device import Burst, Device
from asyncinfer.errors import DeviceError, DeviceLost, DeviceTimeout, InputError, ProtocolError
from asyncinfer.pool import Pool, give_back
from asyncinfer.recorder import Recorder
from asyncinfer.task import Task

__all__ = ("Executor",)

#: what a driver may raise besides ``DeviceError`` when its device is gone
GONE = (ConnectionError, EOFError)


class Executor:
    """One asyncio task per burst awaits the driver, in the context of the tasks' submitter."""

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        *,
        retries: int,
        run_timeout: float | None,
        lost: Callable[[Device, list[Burst]], None],
    ) -> None:
        self.pool: Pool
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._retries = retries
        self._run_timeout = run_timeout
        self._lost = lost

    def start(self, burst: Burst) -> None:
        """Run ``burst`` in the context of its first task."""
        context = burst.pending[0].context or contextvars.copy_context()
        name = f"asyncinfer {burst.device.name}"
        burst.runner = self._loop.create_task(self._run(burst), name=name, context=context)

    async def _run(self, burst: Burst) -> None:
        device = burst.device
        infer, clock = device.driver.infer, self._clock
        first = ended = clock()
        calls = tasks = 0
        try:
            while burst.pending and burst.live:
                batch = burst.next_batch(ended)
                outputs = await self._call(burst, infer, batch)
                begun, ended = ended, clock()
                if not burst.live:
                    return
                if outputs is None:
                    continue
                calls += 1
                tasks += len(batch)
                self._returned(burst, batch, outputs, begun, ended)
        except asyncio.CancelledError:
            pass  # whoever cancels has taken the tasks, or wants them to go elsewhere
        finally:
            if calls and burst.live:
                device.estimator.add(tasks / calls, (ended - first) / calls)
            self._end(burst, calls, tasks, first, ended)

    async def _call(
        self, burst: Burst, infer: Callable[[list[Any]], Any], batch: list[Task]
    ) -> Any:
        """The driver's outputs, or ``None`` if it failed and that has been dealt with."""
        timer = None
        if self._run_timeout is not None:
            timer = self._loop.call_later(self._run_timeout, self._overran, burst)
        try:
            return await infer([task.input for task in batch])
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling() or not burst.live:
                raise
            self.fail(burst.device, DeviceLost(burst.device.name, "cancelled its own call"))
        except DeviceError as error:
            self.fail_if(burst, error)
        except GONE as error:
            self.fail_if(burst, _lost(burst.device, error))
        except Exception as error:  # the model raised: the tasks' fault, or one of theirs
            self._raised(burst, batch, error)
        finally:
            if timer is not None:
                timer.cancel()
        return None

    def _end(self, burst: Burst, calls: int, tasks: int, first: float, ended: float) -> None:
        device = burst.device
        now = self._clock()
        device.end(burst, now)
        device.batches += calls
        device.tasks += tasks
        if calls:
            device.failures = 0
            self._recorder.ran(first, ended)
        if burst.live:
            burst.pending.extendleft(reversed(burst.running))
            give_back(burst.pending)
        self.pool.wake()

    # ---- outcomes

    def _returned(
        self, burst: Burst, batch: list[Task], outputs: Any, started: float, ended: float
    ) -> None:
        device = burst.device
        name = device.name
        if not hasattr(outputs, "__len__") or len(outputs) != len(batch):
            count = len(outputs) if hasattr(outputs, "__len__") else type(outputs).__name__
            text = f"returned {count} outputs for {len(batch)} inputs: one each is the contract"
            self.fail(device, ProtocolError(name, text))
            return
        burst.running = []
        observed = self._recorder.observed
        for task, output in zip(batch, outputs, strict=True):
            if task.done:
                continue
            task.started, task.finished = started, ended
            if isinstance(output, BaseException):
                self._task_failed(task, output, device)
                continue
            task.value = output
            task.device = name
            task.attempts += 1
            task.lane.finish(task)
            if observed:
                self._recorder.task_event("task.finished", task)

    def _raised(self, burst: Burst, batch: list[Task], error: Exception) -> None:
        ended = self._clock()
        burst.running = []
        for task in batch:
            task.started, task.finished = burst.started, ended
            if task.done:
                continue
            if len(batch) == 1:
                self._task_failed(task, error, burst.device)
            else:  # which one is to blame shows when each is run alone
                self.pool.retries.append(task)

    def _task_failed(self, task: Task, error: BaseException, device: Device) -> None:
        """One attempt failed: try again elsewhere, or end the task with its error."""
        device.errors += 1
        task.note(error, device.name)
        if task.attempts <= self._retries and not isinstance(error, InputError):
            self._recorder.retried += 1
            self._recorder.task_event("task.retried", task, error)
            self.pool.retries.append(task)
            return
        task.fail()
        task.lane.finish(task)
        self._recorder.task_event("task.failed", task, error)

    # ---- the device's fault

    def fail_if(self, burst: Burst, error: DeviceError) -> None:
        """The device failed under ``burst``, unless the burst had been taken away before."""
        if burst.live:
            self.fail(burst.device, error)

    def fail(self, device: Device, error: DeviceError) -> None:
        """The device failed: its tasks go to the others, and it is to be opened again."""
        device.errors += 1
        bursts = self.take_back(device, error)
        self._recorder.device_event("device.lost", device.name, error)
        self._lost(device, bursts)

    def take_back(self, device: Device, error: DeviceError | None = None) -> list[Burst]:
        """Take every task from the device; with ``error``, the running ones have failed by it."""
        now = self._clock()
        bursts = list(device.bursts)
        for burst in bursts:
            burst.live = False
            device.end(burst, now)
            running = [task for task in burst.running if not task.done]
            if error is None:
                burst.pending.extendleft(reversed(running))
            else:
                for task in running:
                    task.started, task.finished = burst.started, now
                    self._task_failed(task, error, device)
            give_back(burst.pending)
            _cancel(burst)
        self.pool.wake()
        return bursts

    def _overran(self, burst: Burst) -> None:
        if burst.live:
            text = f"a call took longer than the run timeout of {self._run_timeout} s"
            self.fail(burst.device, DeviceTimeout(burst.device.name, text))

    def abandon(self, burst: Burst) -> None:
        """Cancel a call nobody waits for any more; the device stays busy until it has ended."""
        _cancel(burst)


def _cancel(burst: Burst) -> None:
    runner = burst.runner
    if runner is not None and runner is not asyncio.current_task():
        runner.cancel()


def _lost(device: Device, error: BaseException) -> DeviceLost:
    lost = DeviceLost(device.name, f"{type(error).__name__}: {error}")
    lost.__cause__ = error
    return lost
