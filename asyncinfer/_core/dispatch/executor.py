"""Runs tasks on devices: all code that waits for a driver's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from asyncinfer._core.alarm import Alarm
from asyncinfer._core.devices.apart import set_apart
from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.devices.lateness import PUNCTUAL
from asyncinfer._core.dispatch.incontext import InContext
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer.errors import DeviceError, DeviceLost, DeviceTimeout, ProtocolError

__all__ = ("Executor",)

#: errors that mean that the device is gone, besides ``DeviceError``
GONE = (ConnectionError, EOFError)
#: results are passed on to the lane at most this often, in seconds, while calls are short
PROMPT = 100e-6


class Executor:
    """Runs each burst in an asyncio task, in the ``contextvars`` context of the tasks' submitter.

    Where each task has a context of its own, a call has that of its first one.

    It hands results and errors to ``Outcomes``, which decides what they mean for the tasks, and
    devices that failed to ``device_failed``.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        *,
        run_timeout: float | None,
        device_failed: Callable[[Device, DeviceError], None],
    ) -> None:
        self._outcomes = outcomes
        self._clock = clock
        self._loop = loop
        self._run_timeout = run_timeout
        self._device_failed = device_failed

    def start(self, burst: Burst) -> None:
        """Begin to run ``burst``, in the context of its first task."""
        first = next(iter(burst.spans))
        context = (burst.lane.context if first.context is None else first.context).copy()
        name = f"asyncinfer {burst.device.name}"
        burst.runner = self._loop.create_task(self._run(burst), name=name, context=context)
        set_apart(burst.runner)

    async def carry_on(self, burst: Burst, answer: Awaitable[Sequence[Any] | None]) -> None:
        """Wait for the ``answer`` of a call that was made before; it is all that ``burst`` runs.

        What awaits this is the burst's runner.
        """
        if burst.runner is not None:
            set_apart(burst.runner)
        await self._run(burst, answer)

    async def _run(
        self, burst: Burst, answer: Awaitable[Sequence[Any] | None] | None = None
    ) -> None:
        device = burst.device
        try:
            await (self._work(burst) if answer is None else self._take(burst, answer))
        except asyncio.CancelledError:
            if not _is_cancelled():
                self._report_failure(burst, DeviceLost(device.name, "cancelled its own call"))
        except DeviceError as error:
            self._report_failure(burst, error)
        except GONE as error:
            self._report_failure(burst, _lost(device, error))
        except Exception as error:  # the model raised: the fault of the tasks, or of one of them
            self._outcomes.raised(burst, error)
        except GeneratorExit:  # left behind, and the event loop is no more
            burst.live = False
            raise
        except BaseException as error:
            self._report_failure(burst, _lost(device, error))
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        finally:
            if not self._loop.is_closed():
                self._outcomes.call_ended(burst)

    async def _work(self, burst: Burst) -> None:
        """Call the driver with one batch after the other.

        Results are passed on after each call that is longer than ``PROMPT``, and those of shorter
        calls together.
        """
        infer, clock, add = burst.device.driver.infer, self._clock, burst.outputs.extend
        limited = self._run_timeout is not None
        if burst.resets:
            if limited:
                self._limit(burst)
            await _reset(burst.device)
        started = burst.began = burst.call_began = clock()
        contexts = _contexts(burst)
        for batch in burst.batches():
            if limited:
                self._limit(burst)
            outputs = await (infer(batch) if contexts is None else next(contexts)(infer, batch))
            if not burst.live:
                return
            if outputs is None or len(outputs) != len(batch):
                raise _wrong_count(burst.device, outputs, batch)
            add(outputs)
            burst.call_began = now = clock()
            if now - started > PROMPT:
                self._outcomes.pass_on(burst, started)
                started = now
        self._outcomes.pass_on(burst, started)

    async def _take(self, burst: Burst, answer: Awaitable[Sequence[Any] | None]) -> None:
        """Take the outputs of the one call of ``burst``, which was made already."""
        if self._run_timeout is not None:
            self._limit(burst)
        outputs = await answer
        if not burst.live:
            return
        if outputs is None or len(outputs) != burst.tasks:
            raise _wrong_count(burst.device, outputs, burst.inputs)
        burst.outputs.extend(outputs)
        burst.call_began = self._clock()
        self._outcomes.pass_on(burst, burst.began)

    def _report_failure(self, burst: Burst, error: DeviceError) -> None:
        """Report that the device failed, unless the tasks of ``burst`` were taken away before."""
        if burst.live:
            self._device_failed(burst.device, error)

    # ---- the run timeout

    def _limit(self, burst: Burst) -> None:
        """Start the run timeout of the next call."""
        if burst.alarm is None:
            burst.alarm = Alarm(self._loop, partial(self._overran, burst))
        burst.alarm.cancel()
        burst.alarm.within(self._run_timeout or 0.0)

    def _overran(self, burst: Burst) -> None:
        alarm = burst.alarm
        if alarm is not None and alarm.late > PUNCTUAL:  # the loop stood still: it may be answered
            alarm.within(min(alarm.late, self._run_timeout or 0.0))
            return
        text = f"a call took longer than the run timeout of {self._run_timeout} s"
        self._report_failure(burst, DeviceTimeout(burst.device.name, text))


def _contexts(burst: Burst) -> Iterator[Callable[..., InContext]] | None:
    """For each call, what makes it in the context of its first task; ``None`` if one is enough."""
    if burst.tasks <= burst.batch or next(iter(burst.spans)).context is None:
        return None
    contexts = [task.context for task in burst.spans][:: burst.batch]
    return (partial(InContext, context.copy()) for context in contexts if context is not None)


async def _reset(device: Device) -> None:
    """Have a stateful device forget what came before."""
    driver: Any = device.driver
    try:
        await driver.reset()
    except DeviceError:
        raise
    except Exception as error:
        text = f"could not be reset: {type(error).__name__}: {error}"
        raise DeviceError(device.name, text) from error


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
