"""Bugs to be found: the core with one line of it wrong. Never imported by the core itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from asyncinfer._core.devices import connecting
from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.devices.supervisor import Supervisor
from asyncinfer._core.devices.trust import Trust
from asyncinfer._core.dispatch import bindings, executor
from asyncinfer._core.dispatch.hedging import Hedging
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer._core.dispatch.retries import Retries
from asyncinfer._core.tasks.intake import Intake
from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.spans import Run, Span

__all__ = ("PLANTED", "planted")


def _cancelled_call_loses_its_neighbours() -> list[Any]:
    """One caller gives up: the whole batch is cancelled, and the others' tasks are forgotten."""

    def abandoned(self: Burst) -> bool:
        return self.tasks_run < self.tasks and any(span.done for span in self.spans)

    def end(self: Outcomes, burst: Burst) -> None:
        with patch.object(Outcomes, "_reassign", lambda self, device, tasks: None):
            whole(self, burst)

    whole = Outcomes.call_ended
    return [
        patch.object(Burst, "abandoned", property(abandoned)),
        patch.object(Outcomes, "call_ended", end),
    ]


def _removal_loses_what_runs() -> list[Any]:
    """A device is removed without draining: what it runs is not given back."""

    def take_back(self: Outcomes, device: Device, error: Any = None) -> list[Burst]:
        if error is None:
            for burst in device.bursts:
                burst.take_running()
        return whole(self, device, error)

    whole = Outcomes.take_back
    return [patch.object(Outcomes, "take_back", take_back)]


def _second_result_taken(which: Callable[[Span], bool]) -> Any:
    """``pass_on`` that does not ask, of some tasks, whether they have an outcome."""

    def pass_on(self: Outcomes, burst: Burst, started: float) -> None:
        if burst.outputs and burst.live and any(map(which, burst.spans)):
            run = Run(burst.device.name, started, burst.call_began)
            outputs = iter(list(burst.outputs))
            for span in burst.take_finished():
                copy = Span(span.lane, span.first, [None] * span.count, span.submitted)
                copy.outputs = [next(outputs) for _ in range(span.count)]
                copy.run, copy.future = run, span.future
                span.settle()
                burst.lane.finish([copy])
                self._recorder.task_event("task.finished", copy)
        else:
            whole(self, burst, started)

    whole = Outcomes.pass_on
    return patch.object(Outcomes, "pass_on", pass_on)


def _result_doubled_after_hedging() -> list[Any]:
    """The call that comes second finishes its tasks as well."""

    def abandon(self: Outcomes, burst: Burst) -> None:
        if not any(span.copied for span in burst.spans):
            whole(self, burst)

    whole = Outcomes.abandon
    return [
        _second_result_taken(lambda span: span.copied),
        patch.object(Outcomes, "abandon", abandon),
    ]


def _result_doubled_after_a_retry() -> list[Any]:
    """A failed task is queued for two more attempts, and both results are taken."""

    def again(self: Outcomes, task: Span, device: str, **how: bool) -> None:
        once(self, task, device, **how)
        self._retries.queue(task)

    once = Outcomes._retry
    return [
        _second_result_taken(lambda span: len(span.causes) > 0),
        patch.object(Outcomes, "_retry", again),
    ]


def _window_one_too_large() -> list[Any]:
    def admit(self: Lane) -> None:
        self.window += 1
        whole(self)
        self.window -= 1

    whole = Lane.admit
    return [patch.object(Lane, "admit", admit)]


def _source_read_too_far() -> list[Any]:
    return [patch.object(Intake, "full", lambda self: self.qsize() > self.maxsize)]


def _late_answer_accepted() -> list[Any]:
    """What a device was told to stop still counts."""

    def take_back(self: Outcomes, device: Device, error: Any = None) -> list[Burst]:
        bursts = list(device.bursts)
        tasks = [list(burst.spans) for burst in bursts]
        whole(self, device, error)
        for burst, spans in zip(bursts, tasks, strict=True):
            burst.live = True
            for span in spans:
                burst.spans.append(span)
        return bursts

    whole = Outcomes.take_back
    return [patch.object(Outcomes, "take_back", take_back)]


def _order_forgotten() -> list[Any]:
    def in_order(self: Lane, spans: list[Span]) -> list[Span]:
        self.head += sum(span.count for span in spans)
        return spans

    return [patch.object(Lane, "_in_order", in_order)]


def _consumer_not_woken() -> list[Any]:
    """A consumer that waits is told of results only when the source has ended."""

    def deliver(self: Lane, spans: list[Span]) -> None:
        self.ready.extend(spans)
        if self.source_ended:
            self._wake()

    return [patch.object(Lane, "_deliver", deliver)]


def _room_lost_with_who_gave_up() -> list[Any]:
    """A caller that was told of room and gave up does not leave its place to the next."""

    async def room(self: Intake) -> int:
        while self.full():
            turn = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            await turn
            self._called -= 1
        return self.maxsize - self.qsize()

    return [patch.object(Intake, "room", room)]


def _device_not_served_after_a_loss() -> list[Any]:
    """Nobody looks for another device once tasks were taken from one."""

    def take_back(self: Outcomes, device: Device, error: Any = None) -> list[Burst]:
        with patch.object(self, "_wake", lambda: None):
            return whole(self, device, error)

    def end(self: Outcomes, burst: Burst) -> None:
        with patch.object(self, "_wake", self._wake if burst.live else lambda: None):
            whole_end(self, burst)

    whole, whole_end = Outcomes.take_back, Outcomes.call_ended
    return [
        patch.object(Outcomes, "take_back", take_back),
        patch.object(Outcomes, "call_ended", end),
    ]


def _reserved_tasks_forgotten() -> list[Any]:
    """A device fails: the tasks that it had and had not started are not given back."""

    def take_rest(self: Burst) -> list[Span]:
        whole(self)
        return []

    whole = Burst.take_rest
    return [patch.object(Burst, "take_rest", take_rest)]


def _one_attempt_too_many() -> list[Any]:
    def init(self: Outcomes, *parts: Any, most_retries: int, **more: Any) -> None:
        whole(self, *parts, most_retries=most_retries + 1, **more)

    whole = Outcomes.__init__
    return [patch.object(Outcomes, "__init__", init)]


def _values_mixed_up() -> list[Any]:
    """The outputs of a batch go to its tasks the wrong way round."""

    def take_finished(self: Burst) -> list[Span]:
        self.outputs.reverse()
        return whole(self)

    whole = Burst.take_finished
    return [patch.object(Burst, "take_finished", take_finished)]


def _timer_left() -> list[Any]:
    """The run timeout of a call that has ended goes on."""

    def end(self: Outcomes, burst: Burst) -> None:
        burst.alarm = None
        whole(self, burst)

    whole = Outcomes.call_ended
    return [patch.object(Outcomes, "call_ended", end)]


def _device_left_open() -> list[Any]:
    """Closing forgets a device that is up and idle."""

    async def close(self: Supervisor, device: Device, reason: str) -> None:
        if device.bursts or not device.up:
            await whole(self, device, reason)

    whole = Supervisor._close
    return [patch.object(Supervisor, "_close", close)]


def _late_opening_left() -> list[Any]:
    """An opening that succeeds once nobody waits for it is taken to be wanted."""
    return [patch.object(connecting, "_opened_again", lambda device, generation: True)]


def _dropped_task_counted() -> list[Any]:
    """A caller that gives up leaves its task counted: draining waits for it."""

    def discard(self: Lane, span: Span) -> None:
        whole(self, span)
        self.ended_tasks -= span.count

    whole = Lane.discard
    return [patch.object(Lane, "discard", discard)]


def _deadlines_forgotten() -> list[Any]:
    """Time limits end nothing."""
    return [patch.object(Outcomes, "expire", lambda self, spans, kind, text: None)]


def _stream_not_begun_afresh() -> list[Any]:
    """A device that remembers is not reset as a stream begins."""

    async def reset(device: Device) -> None:
        await asyncio.sleep(0)

    return [patch.object(executor, "_reset", reset)]


def _lost_state_made_up() -> list[Any]:
    """A stream goes on whatever became of what its device remembers."""
    return [patch.object(bindings._Binding, "trouble_before", lambda self, index: "")]


def _what_hangs_not_copied() -> list[Any]:
    """Calls that seem to hang are left alone, unless all overdue ones are copied."""
    return [patch.object(Hedging, "rescue", lambda self, burst: None)]


def _distrust_forgotten() -> list[Any]:
    """A failed task is run again where a device is free first, also for the last time."""

    def device_for(self: Retries, kind: Any, shares: bool, now: float) -> Device | None:
        return next((device for device in self._roster.up if device.free), None)

    return [
        patch.object(Retries, "_device_for", device_for),
        patch.object(Trust, "may_spare", lambda self, task: False),
        patch.object(Device, "hold", lambda self, held: None),
    ]


PLANTED: dict[str, Callable[[], list[Any]]] = {
    function.__name__.strip("_").replace("_", " "): function
    for function in (
        _cancelled_call_loses_its_neighbours,
        _removal_loses_what_runs,
        _result_doubled_after_hedging,
        _result_doubled_after_a_retry,
        _window_one_too_large,
        _source_read_too_far,
        _late_answer_accepted,
        _order_forgotten,
        _consumer_not_woken,
        _room_lost_with_who_gave_up,
        _device_not_served_after_a_loss,
        _reserved_tasks_forgotten,
        _one_attempt_too_many,
        _values_mixed_up,
        _timer_left,
        _device_left_open,
        _late_opening_left,
        _dropped_task_counted,
        _deadlines_forgotten,
        _stream_not_begun_afresh,
        _lost_state_made_up,
        _what_hangs_not_copied,
        _distrust_forgotten,
    )
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Let the core have this bug."""
    patches = PLANTED[name]()
    for change in patches:
        change.start()
    try:
        yield
    finally:
        for change in reversed(patches):
            change.stop()
