"""Runs tasks on devices, and decides what their outcome means."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asyncinfer.burst import Burst
from asyncinfer.device import Device
from asyncinfer.errors import DeviceError, DeviceLost, DeviceTimeout, ProtocolError
from asyncinfer.failures import Failures
from asyncinfer.pool import Pool
from asyncinfer.recorder import Recorder
from asyncinfer.span import Run, Span

__all__ = ("Executor",)

#: what a driver may raise besides ``DeviceError`` when its device is gone
GONE = (ConnectionError, EOFError)
#: results of calls shorter than this, in seconds, are passed on together
PROMPT = 100e-6


class Executor:
    """One asyncio task per burst awaits the driver, in the context of the tasks' submitter."""

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        *,
        failures: Failures,
        run_timeout: float | None,
        lost: Callable[[Device, DeviceError, list[Burst]], None],
    ) -> None:
        self.pool: Pool
        self._recorder = recorder
        self._clock = clock
        self._loop = loop
        self._failures = failures
        self._run_timeout = run_timeout
        self._lost = lost

    def start(self, burst: Burst) -> None:
        """Run ``burst`` in the context of its first task."""
        first = next(iter(burst.spans))
        context = (burst.lane.context if first.context is None else first.context).copy()
        name = f"asyncinfer {burst.device.name}"
        burst.runner = self._loop.create_task(self._run(burst), name=name, context=context)

    async def _run(self, burst: Burst) -> None:
        device = burst.device
        try:
            await self._work(burst)
        except asyncio.CancelledError:
            if burst.live and not _is_cancelled():
                self.fail(device, DeviceLost(device.name, "cancelled its own call"))
        except DeviceError as error:
            self._fail_if_live(burst, error)
        except GONE as error:
            self._fail_if_live(burst, _lost(device, error))
        except Exception as error:  # the model raised: the tasks' fault, or that of one of them
            self._raised(burst, error)
        except BaseException as error:
            self._fail_if_live(burst, _lost(device, error))
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        finally:
            self._end(burst)

    async def _work(self, burst: Burst) -> None:
        """Call the driver batch by batch; pass results on once a call or ``PROMPT`` has passed."""
        infer, clock, add = burst.device.driver.infer, self._clock, burst.outputs.extend
        limited = self._run_timeout is not None
        started = burst.began = burst.since = clock()
        for batch in burst.batches():
            if limited:
                self._limit(burst)
            outputs = await infer(batch)
            if not burst.live:
                return
            if outputs is None or len(outputs) != len(batch):
                raise _wrong_count(burst.device, outputs, batch)
            add(outputs)
            burst.since = now = clock()
            if now - started > PROMPT:
                self.pass_on(burst, started)
                started = now
        self.pass_on(burst, started)

    def _end(self, burst: Burst) -> None:
        device = burst.device
        self.pass_on(burst, burst.began)
        self._count(burst)
        device.end(burst, self._clock())
        if burst.timer is not None:
            burst.timer.cancel()
        if burst.live and burst.spans:
            self._failures.give_back(device, burst.take_rest())
        self.pool.wake()

    def _count(self, burst: Burst) -> None:
        """Take what the burst has done into the device's figures, once, and while it is live."""
        device, calls = burst.device, burst.calls
        if not calls or not burst.live or burst.generation != device.generation:
            return
        device.batches += calls
        device.tasks += burst.at
        device.learn(burst.at / calls, (burst.since - burst.began) / calls)
        device.answered(burst.since)
        self._recorder.ran(burst.began, burst.since)

    # ---- outcomes

    def pass_on(self, burst: Burst, started: float) -> None:
        """Give the lane the outputs that have come since ``started``."""
        if not burst.outputs or not burst.live or burst.generation != burst.device.generation:
            return
        run = Run(burst.device.name, started, burst.since)
        some_failed = _has_errors(burst.outputs)
        finished: list[Span] = []
        for span in burst.take_finished():
            if span.done:  # it ended otherwise meanwhile
                continue
            span.run = run
            if some_failed:
                finished += self._succeeded(burst.device, span)
            else:
                finished.append(span)
        if finished:
            burst.lane.finish(finished)
        if self._recorder.observed:
            for span in finished:
                self._recorder.task_event("task.finished", span)

    def _succeeded(self, device: Device, span: Span) -> Iterator[Span]:
        """Errors came in the place of some outputs: those tasks failed, each alone."""
        for task in span.singles():
            error = task.outputs[0]
            if isinstance(error, BaseException):
                device.errors += 1
                self._failures.note(task, error, task.run)
            else:
                yield task

    def _raised(self, burst: Burst, error: Exception) -> None:
        """The model raised: the fault of the one task that ran, or of one of several."""
        if not burst.live:
            return
        self.pass_on(burst, burst.began)
        run = Run(burst.device.name, burst.since, self._clock())
        tasks = burst.take_running()
        if len(tasks) == 1:
            burst.device.errors += 1
            self._failures.note(tasks[0], error, run)
            return
        for task in tasks:  # each alone: that shows which one is to blame
            task.run = run
            self._failures.again(task, run.device)

    # ---- the device's fault

    def _fail_if_live(self, burst: Burst, error: DeviceError) -> None:
        """The device failed under ``burst``, unless the burst had been taken away before."""
        if burst.live:
            self.fail(burst.device, error)

    def fail(self, device: Device, error: DeviceError) -> None:
        """The device failed: its tasks go to the others, and it is to be opened again."""
        device.errors += 1
        self._lost(device, error, self.take_back(device, error))

    def take_back(self, device: Device, error: DeviceError | None = None) -> list[Burst]:
        """Take every task from the device; with ``error``, the running ones have failed by it."""
        now = self._clock()
        bursts = list(device.bursts)
        for burst in bursts:
            self.pass_on(burst, burst.began)
            self._count(burst)
            burst.live = False
            device.end(burst, now)
            run = Run(device.name, burst.since, now)
            running = burst.take_running()
            for task in running:
                if error is None:
                    task.run = run
                else:
                    self._failures.note(task, error, run)
            rest = burst.take_rest()
            self._failures.give_back(device, rest if error else [*running, *rest])
            _cancel(burst)
        self.pool.wake()
        return bursts

    def _limit(self, burst: Burst) -> None:
        """Start the run timeout for the next call."""
        if burst.timer is not None:
            burst.timer.cancel()
        burst.timer = self._loop.call_later(self._run_timeout or 0.0, self._overran, burst)

    def _overran(self, burst: Burst) -> None:
        if burst.live:
            text = f"a call took longer than the run timeout of {self._run_timeout} s"
            self.fail(burst.device, DeviceTimeout(burst.device.name, text))

    def abandon(self, burst: Burst) -> None:
        """Cancel a call nobody waits for any more; the device stays busy until it has ended."""
        runner = burst.runner
        if runner is None or runner.cancelling():
            return
        _cancel(burst)
        if _unstarted(runner):
            self._end(burst)  # it is cancelled before it could do that itself


def _unstarted(runner: asyncio.Task[None]) -> bool:
    coro = runner.get_coro()
    return inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED


def _has_errors(outputs: list[Any]) -> bool:
    return any(issubclass(kind, BaseException) for kind in set(map(type, outputs)))


def _cancel(burst: Burst) -> None:
    burst.inputs.clear()  # a driver that ignores it answers, but is not called once more
    runner = burst.runner
    if runner is not None and runner is not asyncio.current_task():
        runner.cancel()


def _is_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _wrong_count(device: Device, outputs: Sequence[Any] | None, batch: list[Any]) -> ProtocolError:
    count = "no" if outputs is None else len(outputs)
    text = f"returned {count} outputs for {len(batch)} inputs: one output each is the contract"
    return ProtocolError(device.name, text)


def _lost(device: Device, error: BaseException) -> DeviceLost:
    lost = DeviceLost(device.name, f"{type(error).__name__}: {error}")
    lost.__cause__ = error
    return lost
