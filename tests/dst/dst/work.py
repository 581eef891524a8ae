"""Sources, consumers and callers of a run, which check what they are given."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asyncinfer import Dispatcher
from asyncinfer._core.dispatch.retries import POISON
from asyncinfer.errors import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    DeviceError,
    InputError,
    PoisonTask,
    QueueTimeout,
    StateLost,
    TaskError,
)
from dst.devices import Defect, Faults, until
from dst.ledger import OWNER, Input, Ledger
from dst.schedule import Calls, Settings, Stream

__all__ = ("Work",)


#: errors after which a task may end though it has attempts left
FINAL = (InputError, ConfigError)


class SourceFailed(Exception):
    """Raised by a source, as planned."""


class BodyFailed(Exception):
    """Raised by who reads a stream."""


class Work:
    """What is submitted to a dispatcher, and what comes back."""

    def __init__(
        self,
        dispatcher: Dispatcher[Any, Any],
        settings: Settings,
        faults: Faults,
        ledger: Ledger,
    ) -> None:
        self.dispatcher, self.settings = dispatcher, settings
        self.faults, self.ledger = faults, ledger
        #: the dispatcher may refuse or cut off work
        self.closing = False
        #: from when on it does not wait for accepted work to end
        self.cut_at = math.inf
        #: sources that were begun and not closed
        self.open_sources: set[str] = set()
        #: somebody gave up or was cut off, so that not every task was delivered
        self.dropped = False
        #: cancelled readers, which are kept to the end
        self.kept: list[asyncio.Task[None]] = []
        self.reading: dict[str, weakref.ref[Any]] = {}

    @property
    def cut(self) -> bool:
        """Whether the dispatcher need not wait for accepted work to end.

        A matter of the clock, not of a timer: with a leap, one timer rings and another does not.
        """
        return self.ledger.now >= self.cut_at - 1e-9

    def cut_in(self, seconds: float = 0.0) -> None:
        """After so many seconds it need not."""
        self.cut_at = min(self.cut_at, self.ledger.now + seconds)

    # ---- sources

    def source(self, name: str, plan: Stream) -> Any:
        """What a stream reads."""
        if plan.source == "list":
            self.ledger.read[name] = plan.tasks
            return [(name, i) for i in range(plan.tasks)]
        if plan.source == "generator":
            return self._generator(name, plan)
        return self._async_generator(name, plan)

    def _inputs(self, name: str, plan: Stream) -> Iterator[Input]:
        ledger = self.ledger
        for i in range(plan.tasks):
            ledger.read[name] += 1
            ahead = ledger.read[name] - ledger.delivered[name]
            room = self.settings.window + self.settings.queue_size
            ledger.check(ahead <= room, "bound", name, "is read", ahead, "ahead")
            yield name, i
        if plan.source_fails:
            raise SourceFailed(name)

    def _generator(self, name: str, plan: Stream) -> Iterator[Input]:
        self.open_sources.add(name)
        try:
            yield from self._inputs(name, plan)
        finally:
            self.open_sources.discard(name)

    async def _async_generator(self, name: str, plan: Stream) -> AsyncIterator[Input]:
        self.open_sources.add(name)
        try:
            for number in range(plan.tasks + 1):
                if number == plan.stall_before:
                    await self._stall(plan)
                elif plan.source_pause:
                    await asyncio.sleep(plan.source_pause)
                if number < plan.tasks:
                    self.ledger.read[name] += 1
                    yield name, number
            if plan.source_fails:
                raise SourceFailed(name)
        finally:
            self.open_sources.discard(name)

    async def _stall(self, plan: Stream) -> None:
        if plan.source == "stubborn":
            await self.faults.ignore(plan.stall)
        else:
            await until(self.faults.healed, plan.stall)

    # ---- consumers

    async def consume(self, name: str, plan: Stream) -> None:
        """Read one stream as planned, and check what came."""
        OWNER.set(name)
        got: list[int] = []
        reader = asyncio.create_task(self._read(name, plan, got), name=f"consumer {name}")
        if plan.end == "cancel":
            await asyncio.wait([reader], timeout=plan.patience)
            reader.cancel()
        await asyncio.wait([reader])
        error = asyncio.CancelledError() if reader.cancelled() else reader.exception()
        if reader.cancelled():
            self.kept.append(reader)  # and its stream ends nevertheless
            await asyncio.sleep(0)
            ended = name not in self.reading or self.reading[name]() is None
            self.ledger.check(ended, "reader", name, "is cancelled, and its stream goes on")
        self.ledger.note("consumed", name, len(got), type(error).__name__)
        self._check_end(name, plan, got, error)

    async def _read(self, name: str, plan: Stream, got: list[int]) -> None:
        source = self.source(name, plan)
        options = {"ordered": plan.ordered, **plan.claim.arguments}
        if plan.read == "results":
            stream: Any = self.dispatcher.results(source, **options)
        else:
            errors = plan.read == "errors"
            stream = self.dispatcher.stream(source, return_exceptions=errors, **options)
        del source
        self.reading[name] = weakref.ref(stream)
        if plan.end == "body":
            async with stream:
                await self._take(name, plan, stream, got)
                raise BodyFailed
        await self._take(name, plan, stream, got)
        if plan.end == "aclose":
            await stream.aclose()
            await stream.aclose()

    async def _take(self, name: str, plan: Stream, stream: Any, got: list[int]) -> None:
        stops = plan.end in ("break", "aclose", "drop", "body")
        while not (stops and len(got) >= plan.after):
            try:
                item = await anext(stream)
            except StopAsyncIteration:
                got.append(-1)
                return
            except TaskError as error:
                self.ledger.check(plan.read == "raises", "errors are returned", error)
                item = error.with_traceback(None)  # which would keep the stream alive
            self.ledger.delivered[name] += 1
            self._check_item(name, plan, item, got)
            item = None
            if plan.consumer_pause:
                await asyncio.sleep(plan.consumer_pause)

    def _check_item(self, name: str, plan: Stream, item: Any, got: list[int]) -> None:
        if isinstance(item, TaskError):
            index = item.index
            self.check_error((name, index), item)
        elif plan.read == "results":
            index = item.index
            self._check_result((name, index), item)
        else:
            index = self.check_output(name, item)
        self.ledger.note("delivered", name, index)
        if plan.ordered:
            self.ledger.check(index == len(got), "order", name, index, "comes after", len(got))
        self.ledger.check(index not in got, "doubled", name, index)
        got.append(index)

    def _check_end(
        self, name: str, plan: Stream, got: list[int], error: BaseException | None
    ) -> None:
        check, read = self.ledger.check, self.ledger.read[name]
        ended = got[-1:] == [-1]
        taken = len(got) - ended
        if plan.source in ("list", "stubborn"):  # what it gives after it was cancelled is not run
            read = taken
        if ended:
            check(error is None or isinstance(error, BodyFailed), "consumer", name, repr(error))
            check(taken == plan.tasks, "lost", name, taken, "of", plan.tasks)
            check(not plan.source_fails, "source error", name, "is not told")
        elif isinstance(error, SourceFailed):
            check(plan.source_fails and taken == plan.tasks, "lost", name, taken, "of", plan.tasks)
        elif isinstance(error, ClosedError):
            check(self.closing, "closed", name, "is told of closing:", error)
            check(self.cut or taken == read, "lost", name, taken, "of", read, "when drained")
        elif isinstance(error, asyncio.CancelledError):
            check(plan.end == "cancel" or self.closing, "consumer", name, "is cancelled")
        elif isinstance(error, BodyFailed) or error is None:
            check(plan.end in ("break", "aclose", "drop", "body"), "consumer", name, "ends early")
        else:
            self.ledger.wrong("consumer", f"{name} is told {error!r}")
        if error is not None or not ended:
            self.dropped = True

    # ---- callers

    async def call(self, name: str, plan: Calls) -> None:
        """Call ``infer`` once, and check the answer."""
        OWNER.set(name)
        ledger = self.ledger
        outcome = "answered"
        try:
            async with asyncio.timeout(plan.patience):
                output = await self.dispatcher.infer((name, 0), **plan.claim.arguments)
            ledger.delivered[name] += 1
            self.check_output(name, output)
        except TaskError as error:
            outcome = repr(error)
            ledger.delivered[name] += 1
            self.check_error((name, 0), error)
        except ConfigError as error:
            outcome = "refused"
            ledger.check(self.settings.stateful, "caller", name, "is refused:", error)
        except TimeoutError:
            outcome, self.dropped = "out of patience", True
            ledger.check(plan.patience is not None, "caller", name, "is told of a timeout")
        except ClosedError as error:
            outcome, self.dropped = "closed", True
            ledger.check(self.closing, "closed", name, "is told of closing:", error)
        ledger.note("called", name, outcome)

    # ---- outcomes

    def check_output(self, name: str, output: Any) -> int:
        """It belongs to one of this stream's inputs, and comes from a call that counts."""
        check = self.ledger.check
        try:
            what, (owner, index), number = output
            call = self.ledger.calls[number]
        except (TypeError, ValueError, IndexError):
            self.ledger.wrong("value", f"{name} is given {output!r}")
            return -2
        check(what == "out" and owner == name, "value", name, "is given that of", owner)
        check((owner, index) in call.inputs, "value", name, "is given", output)
        check(call.end == "answered", "value", name, index, "comes of a call that", call.end)
        check(not call.cancelled, "late answer", name, index, "comes of cancelled call", number)
        if self.settings.stateful:
            before = tuple((name, earlier) for earlier in range(index))
            check(call.before == before, "state", name, index, "was made after", *call.before[-3:])
        return int(index)

    def _check_result(self, x: Input, result: Any) -> None:
        check = self.ledger.check
        if result.error is not None:
            check(result.value is None, "value", x, "has a value and an error")
            check(result.error.index == x[1], "value", x, "has the error of", result.error.index)
            self._check_time(x, result)
            self.check_error(x, result.error)
            return
        index = self.check_output(x[0], result.value)
        check(index == x[1], "value", x, "has the value of", index)
        made_by = self.ledger.calls[result.value[2]].device if index >= 0 else result.device
        check(result.device == made_by, "device", x, "is said to be of", result.device)
        check(1 <= result.attempts <= self.settings.retries + 1, "attempts", x, result.attempts)
        in_order = result.submitted <= result.started <= result.finished <= result.delivered
        check(in_order, "times", x, "are not in order")
        total = self.settings.total
        if total is not None:
            late = result.finished - self.ledger.runs[x][0].started - total - self.ledger.leapt
            check(late < 1e-3, "deadline", x, "ends", late, "s too late")

    def _check_time(self, x: Input, result: Any) -> None:
        """A stream's task is not late before its limit, nor long after it if it was started."""
        settings, runs = self.settings, self.ledger.runs[x]
        queued = isinstance(result.error, QueueTimeout)
        limit = settings.queue if queued else settings.total
        if limit is None or not isinstance(result.error, QueueTimeout | DeadlineExceeded):
            return
        early = limit - (result.finished - result.submitted)
        self.ledger.check(early < 1e-6, "deadline", x, "ends", early, "s before it")
        if runs:
            late = result.finished - runs[0].started - limit
            right = late < 1e-3 + self.ledger.leapt
            self.ledger.check(right, "deadline", x, "ends", late, "s after it")

    def _untried(self, x: Input, error: TaskError) -> list[str]:
        """Devices that failed nothing, and were there for an input all the time.

        The last attempt is theirs, if there are no more devices that fail than retries. Of those
        that call inputs bad there may be only one, as two confirm each other: decision 0028.
        """
        ledger, faults = self.ledger, self.faults
        failing = {call.device for call in ledger.calls if call.end not in ("answered", "")}
        failing |= {*faults.broken, *(device for device, _ in faults.calls)}
        refused = any(isinstance(cause, InputError) for cause in error.causes)
        if len(failing) > (min(1, self.settings.retries) if refused else self.settings.retries):
            return []
        begun = ledger.runs[x][0].started
        return [
            name
            for name, since in ledger.steady.items()
            if since < begun and name not in failing and name not in error.devices
        ]

    def check_error(self, x: Input, error: TaskError, seconds: float | None = None) -> None:
        """It is complete, and within the limits."""
        check, settings = self.ledger.check, self.settings
        tried = len(error.causes)
        spared = tried - error.attempts  # a copy may fail besides, and one by the device's fault
        refused = sum(isinstance(cause, ConfigError) for cause in error.causes)
        check(0 <= spared <= self.ledger.copies + refused + 1, "attempts", x, repr(error))
        check(len(error.devices) == tried, "attempts", x, repr(error))
        check(error.attempts <= settings.retries + 1, "attempts", x, "has failed", tried, "times")
        for cause, device in zip(error.causes, error.devices, strict=False):
            of = cause.device if isinstance(cause, DeviceError) else device
            check(of == device, "cause", x, "on", device, "has the error of", of)
        limit: float | None = None
        if type(error) is TaskError:
            final = error.attempts > settings.retries or isinstance(error.causes[-1], FINAL)
            final = final or any(isinstance(cause, InputError) for cause in error.causes)
            final = final or settings.stateful
            check(final, "attempts", x, "is given up after", error.attempts)
            defects = all(isinstance(cause, Defect) for cause in error.causes)
            if defects and not settings.stateful:
                left = self._untried(x, error)
                check(not left, "trust", x, "fails on", *error.devices, "and not on", *left)
        elif isinstance(error, StateLost):
            check(settings.stateful, "state", x, "has lost what no device keeps")
            late = settings.queue is not None or settings.total is not None
            why = late or self.ledger.left or any(self.ledger.lost.values())
            check(why, "state", x, "is said to have lost its device:", error)
        elif isinstance(error, PoisonTask):
            check(len(set(error.devices)) >= POISON, "poison", x, "has killed", *error.devices)
        elif isinstance(error, QueueTimeout):
            limit = settings.queue
            check(limit is not None, "deadline", x, "has no queue timeout")
            check(not self.ledger.runs[x], "deadline", x, "was started and timed out in the queue")
        elif isinstance(error, DeadlineExceeded):
            limit = settings.total
            check(limit is not None, "deadline", x, "has no total timeout")
        if limit is not None and seconds is not None:
            late = seconds - limit
            right = -1e-6 < late < 1e-3 + self.ledger.leapt
            check(right, "deadline", x, "ends", late, "s after it")
