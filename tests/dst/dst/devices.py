"""A device that goes wrong as planned, and watches whether it is used by the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any

from asyncinfer import Driver
from asyncinfer.driver import ServiceTime
from asyncinfer.errors import ConfigError, DeviceLost, InputError, ProtocolError
from asyncinfer.testing import SimulatedHost
from dst.ledger import OWNER, Call, Input, Ledger
from dst.schedule import (
    Broken,
    CallFault,
    CloseFault,
    DevicePlan,
    OpenFault,
    ResetFault,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("UNKNOWN", "Defect", "Faults", "FaultyDriver", "Unusual", "until")

#: what a device remembers that was not reset, or was stopped in the middle of something
UNKNOWN: Input = ("unknown", -1)


class Defect(Exception):
    """Raised by a device that fails what others can do."""


class Refusal(Defect, InputError):
    """Raised by a device that calls an input bad that others can do."""


class Unusual(BaseException):
    """Neither an Exception nor one that asyncio knows."""


RAISED: dict[str, Any] = {
    "protocol": lambda name: ProtocolError(name, "garbled"),
    "connection": lambda name: ConnectionResetError("reset"),
    "end of file": lambda name: EOFError("end of file"),
    "model": lambda name: ValueError("the model raises"),
    "config": lambda name: ConfigError("set up wrongly"),
    "input": lambda name: InputError("a bad input"),
    "cancels itself": lambda name: asyncio.CancelledError(),
    "base": lambda name: Unusual(),
}
RETURNED: dict[str, Any] = {
    "one model": lambda outputs: [*outputs[:-1], ValueError("in its place")],
    "one input": lambda outputs: [*outputs[:-1], InputError("in its place")],
    "too few": lambda outputs: outputs[:-1],
    "too many": lambda outputs: [*outputs, outputs[0]],
    "nothing": lambda outputs: None,
}


class Faults:
    """What is to go wrong, and for how long still: shared by all devices of a run."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.calls: dict[tuple[str, int], CallFault] = {}
        self.opens: dict[tuple[str, int], OpenFault] = {}
        self.closes: dict[tuple[str, int], CloseFault] = {}
        self.resets: dict[tuple[str, int], ResetFault] = {}
        self.inputs: dict[Input, str] = {}
        self.broken: dict[str, Broken] = {}
        #: set when all faults end: who hangs goes on then
        self.healed = asyncio.Event()

    async def hang(self) -> None:
        """Wait until all faults end."""
        await self.healed.wait()

    async def ignore(self, seconds: float, call: Call | None = None) -> bool:
        """Sleep, whoever cancels it; at most until all faults end. Tell whether somebody did."""
        loop, ledger = asyncio.get_running_loop(), self.ledger
        cancelled, task = False, asyncio.current_task()
        ledger.stubborn.add(task)
        try:
            end = loop.time() + seconds
            while loop.time() < end and not self.healed.is_set():
                try:
                    await until(self.healed, end - loop.time())
                except asyncio.CancelledError:
                    cancelled = True
                    ledger.note("ignores its cancellation", call and call.number)
                    if call is not None:
                        call.cancelled = True
        finally:
            ledger.stubborn.discard(task)
        return cancelled


async def until(event: asyncio.Event, seconds: float) -> None:
    """Wait for ``event``, but no longer than so many seconds."""
    waiting = asyncio.get_running_loop().create_future()
    timer = asyncio.get_running_loop().call_later(seconds, _ring, waiting)
    event._waiters.append(waiting)  # type: ignore[attr-defined]  # without a task of its own
    try:
        await waiting
    finally:
        timer.cancel()
        event._waiters.remove(waiting)  # type: ignore[attr-defined]


def _ring(waiting: asyncio.Future[bool]) -> None:
    if not waiting.done():
        waiting.set_result(True)


class FaultyDriver(Driver[Any, Any]):
    """One simulated device."""

    def __init__(
        self,
        plan: DevicePlan,
        faults: Faults,
        ledger: Ledger,
        settings: Settings,
        host: SimulatedHost | None = None,
    ) -> None:
        self.plan, self.faults, self.ledger, self.host = plan, faults, ledger, host
        claimed = plan.host if plan.claims is None else plan.claims
        self.shares = [claimed] if claimed else []
        self.name = plan.name
        self.stateful = settings.stateful
        self.max_batch = 1 if self.stateful else plan.max_batch
        self.concurrency = 1 if self.stateful else plan.concurrency
        self.max_wait = plan.max_wait
        self.latency_target = plan.latency_target
        self.chance = Random(plan.name)
        self.opens = self.closes = self.infers = self.resets = 0
        #: what it was asked since it was reset
        self.memory: list[Input] = [UNKNOWN]
        self.is_open = False
        #: calls that run in the present opening
        self.running: list[Call] = []
        self.factor = 1.0
        #: until when it is gone, and until when it dies in each call
        self.gone_until = self.flaps_until = -1.0
        self._pulled = asyncio.Event()

    # ---- what the schedule does to it

    def unplug(self, seconds: float) -> None:
        """Be gone for a while."""
        self.gone_until = max(self.gone_until, self.ledger.now + seconds)
        self._pulled.set()
        self._pulled = asyncio.Event()

    def flap(self, seconds: float) -> None:
        """Die in each call for a while."""
        self.flaps_until = max(self.flaps_until, self.ledger.now + seconds)

    def heal(self) -> None:
        """Have no faults any more; what runs at present is ready at once."""
        self._pulled.set()
        self.gone_until = self.flaps_until = -1.0
        self.factor = 1.0

    def _check(self, right: bool, *what: Any) -> None:
        self.ledger.check(right, "device contract", self.name, *what)

    @property
    def _well(self) -> bool:
        return not self.faults.healed.is_set()

    # ---- what the dispatcher does

    async def open(self) -> None:
        self.ledger.note("open", self.name, self.opens)
        self._check(not self.is_open, "opened twice")
        fault = self.faults.opens.get((self.name, self.opens)) if self._well else None
        self.opens += 1
        await asyncio.sleep(self.plan.open_seconds)
        if fault is not None:
            await self._open_wrong(fault)
        if self.ledger.now < self.gone_until:
            raise DeviceLost(self.name, "is not there")
        if not self.is_open:  # else a later opening was quicker than this one
            self.is_open = True
            self.running = []
            self.memory = [UNKNOWN]

    async def _held_up(self, fault: OpenFault | CloseFault | ResetFault) -> bool:
        """Hang, or take long, if that is the fault; whether it is."""
        if fault.kind == "hang":
            await self.faults.hang()
        elif fault.kind == "slow":
            await asyncio.sleep(fault.amount)
        else:
            return False
        return True

    async def _open_wrong(self, fault: OpenFault) -> None:
        if await self._held_up(fault):
            return
        if fault.kind == "stubborn":
            if await self.faults.ignore(fault.amount):
                raise asyncio.CancelledError
        elif fault.kind == "stubborn late":  # it succeeds, though nobody waits for it
            if await self.faults.ignore(fault.amount):  # and is then closed by the same task
                self.ledger.stubborn.add(asyncio.current_task())
        elif fault.kind == "os error":
            raise OSError("no such port")
        else:
            raise DeviceLost(self.name, "does not open")

    async def close(self) -> None:
        self.ledger.note("close", self.name, self.closes)
        left = [call.number for call in self.running if not call.cancelled]
        self._check(not left, "closed while calls run that were not cancelled:", left)
        fault = self.faults.closes.get((self.name, self.closes)) if self._well else None
        self.closes += 1
        self.is_open = False
        if self.plan.close_seconds:
            await asyncio.sleep(self.plan.close_seconds)
        if fault is not None:
            await self._close_wrong(fault)

    async def _close_wrong(self, fault: CloseFault) -> None:
        if await self._held_up(fault):
            return
        if fault.kind == "raises":
            raise OSError("close failed")
        await self.faults.ignore(1e9 if fault.kind == "wedge" else fault.amount)

    async def reset(self) -> None:
        self.ledger.note("reset", self.name, self.resets)
        self._check(self.is_open, "reset while not open")
        self._check(not self.running, "reset while calls run")
        fault = self.faults.resets.get((self.name, self.resets)) if self._well else None
        self.resets += 1
        self.memory = memory = [UNKNOWN]
        if fault is not None:
            await self._reset_wrong(fault)
        memory.clear()

    async def _reset_wrong(self, fault: ResetFault) -> None:
        if await self._held_up(fault):
            return
        if fault.kind == "stubborn":
            if await self.faults.ignore(fault.amount):
                raise asyncio.CancelledError
        elif fault.kind == "raises":
            raise ValueError("cannot be reset")
        else:
            raise DeviceLost(self.name, "is lost as it is reset")

    async def calibrate(self) -> ServiceTime | None:
        each = self.plan.estimate
        return None if each is None else ServiceTime(self.plan.batch_cost, each)

    async def probe(self) -> None:
        if not self.is_open or self.ledger.now < self.gone_until:
            raise DeviceLost(self.name, "is not there")

    async def infer(self, batch: Sequence[Any]) -> Any:
        inputs = list(batch)
        self._check(self.is_open, "called while not open")
        self._check(0 < len(inputs) <= self.max_batch, "called with", len(inputs), "inputs")
        owner = OWNER.get()
        self._check(owner == inputs[0][0], "runs", inputs[0], "in the context of", owner)
        running, pulled = self.running, self._pulled
        healthy = sum(not call.cancelled for call in running)
        self._check(healthy < self.concurrency, "too many calls at once")
        call = self.ledger.begin(self.name, inputs)
        memory = self.memory
        call.before = tuple(memory) if self.stateful else ()
        fault = self.faults.calls.get((self.name, self.infers)) if self._well else None
        self.infers += 1
        running.append(call)
        try:
            with self._noted(call):
                return await self._run(call, fault, pulled)
        finally:
            running.remove(call)
            whole = call.end in ("answered", "raised", "refused") and not call.cancelled
            memory += inputs if whole else [UNKNOWN]

    @contextmanager
    def _noted(self, call: Call) -> Iterator[None]:
        how = "answered"
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            call.cancelled = call.cancelled or (task is not None and task.cancelling() > 0)
            how = "cancelled"
            raise
        except (DeviceLost, ProtocolError, ConnectionError, EOFError, Unusual):
            how = "lost"
            raise
        except ConfigError:
            how = "refused"
            raise
        except Exception:
            how = "raised"
            raise
        finally:
            self.ledger.end(call, how)

    def _defects(self, count: int) -> list[bool]:
        """Which of so many tasks the device fails in the call that begins."""
        plan = self.faults.broken.get(self.name)
        if plan is None or not self._well or not 0 < self.infers - plan.after <= plan.calls:
            return [False] * count
        return [self.chance.random() < plan.share for _ in range(count)]

    async def _run(self, call: Call, fault: CallFault | None, pulled: asyncio.Event) -> Any:
        defects = self._defects(len(call.inputs))
        if any(defects):
            return await self._fail(call, defects, pulled)
        kind = fault.kind if fault is not None else ""
        seconds = self.plan.batch_cost + self.plan.service_time * len(call.inputs)
        seconds *= self.factor * self.chance.lognormvariate(0, self.plan.noise)
        if fault is None:
            await self._work(seconds, pulled)
        elif kind == "slow":
            await self._work(seconds * fault.amount, pulled)
        else:
            await self._work(seconds * fault.part, pulled)
            await self._go_wrong(fault, call)
            if not call.cancelled:
                await self._work(seconds * (1 - fault.part), pulled)
        outputs = [("out", x, call.number) for x in call.inputs]
        if kind in RETURNED:
            return RETURNED[kind](outputs)
        return self._bad_inputs(call.inputs, outputs)

    async def _fail(self, call: Call, defects: list[bool], pulled: asyncio.Event) -> Any:
        plan = self.faults.broken[self.name]
        if not (plan.at_once and all(defects)):
            seconds = self.plan.batch_cost + self.plan.service_time * len(call.inputs)
            await self._work(seconds * self.factor, pulled)
        error = Refusal if plan.refuses else Defect
        if plan.raises:
            raise error("of the device")
        outputs: list[Any] = [("out", x, call.number) for x in call.inputs]
        self._bad_inputs(call.inputs, outputs)
        for at, fails in enumerate(defects):
            if fails:
                outputs[at] = error("of the device")
        return outputs

    async def _work(self, seconds: float, pulled: asyncio.Event) -> None:
        ledger = self.ledger
        if ledger.now < self.gone_until or pulled is not self._pulled:
            raise DeviceLost(self.name, "was unplugged")
        if seconds > 0:
            await self._take(seconds, pulled)
        if pulled is not self._pulled or ledger.now < self.flaps_until:
            raise DeviceLost(self.name, "was unplugged")

    async def _take(self, seconds: float, pulled: asyncio.Event) -> None:
        """Take so long as it takes beside others, at most until it is unplugged."""
        if self.host is None:
            return await until(pulled, seconds)
        call = self.host._begin(seconds, self.plan.cores)
        pulled._waiters.append(call.done)  # type: ignore[attr-defined]  # without a task of its own
        try:
            await call.done
        finally:
            pulled._waiters.remove(call.done)  # type: ignore[attr-defined]
            self.host._leave(call)

    async def _go_wrong(self, fault: CallFault, call: Call) -> None:
        kind = fault.kind
        if kind == "crash":
            raise DeviceLost(self.name, "crashes")
        if kind == "hang":
            await self.faults.hang()
        elif kind == "wedge":
            await self.faults.ignore(1e9, call)
        elif kind.startswith("stubborn"):
            await self.faults.ignore(fault.amount, call)
            if kind == "stubborn" and call.cancelled:  # else it answers, late
                raise asyncio.CancelledError
        elif kind in RAISED:
            raise RAISED[kind](self.name)

    def _bad_inputs(self, inputs: list[Input], outputs: list[Any]) -> list[Any]:
        for at, x in enumerate(inputs):
            kind = self.faults.inputs.get(x, "")
            if kind == "poison" and self._well:
                raise DeviceLost(self.name, f"dies of {x}")
            if kind.startswith("one "):
                outputs[at] = RAISED[kind.removeprefix("one ")](self.name)
            elif kind in RAISED:
                raise RAISED[kind](self.name)
        return outputs
