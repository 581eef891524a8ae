"""What really happened, written down by devices, sources and consumers, and what was wrong."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ("OWNER", "Call", "Input", "Ledger", "Output")

#: whose stream, or which call of ``infer``, and the index in it
Input = tuple[str, int]
#: "out", the input, and the number of the call that made it
Output = tuple[str, Input, int]
#: set where work is submitted, looked at where it runs
OWNER: ContextVar[str] = ContextVar("OWNER", default="nobody")
#: most notes kept of one run
NOTES = 100_000


@dataclass
class Call:
    """One ``infer`` of a device."""

    number: int
    device: str
    inputs: list[Input]
    started: float
    #: how it ended, "" while it runs
    end: str = ""
    ended: float = 0.0
    #: whether it was cancelled at any time
    cancelled: bool = False
    #: of a device that remembers: what it was asked before since it was reset
    before: tuple[Input, ...] = ()


@dataclass
class Ledger:
    """One run's notes."""

    loop: asyncio.AbstractEventLoop
    wrongs: list[str] = field(default_factory=list)
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    runs: defaultdict[Input, list[Call]] = field(default_factory=lambda: defaultdict(list))
    #: inputs read from each stream's source, and results its consumer has
    read: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    #: a task may be started only if its index is below that of the next to be delivered plus this
    window: float = math.inf
    #: asyncio tasks whose driver or source ignores its cancellation at present
    stubborn: set[asyncio.Task[Any] | None] = field(default_factory=set)
    #: how often a task may have been copied, as far as the dispatcher has told
    copies: int = 0
    #: seconds by which the clock has leapt
    leapt: float = 0.0
    #: times at which each device was lost
    lost: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    #: devices that were to leave
    left: set[str] = field(default_factory=set)

    #: since when each device has been ready without a break
    steady: dict[str, float] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.loop.time()

    def note(self, *what: Any) -> None:
        """Write down what happened."""
        if len(self.trace) < NOTES:
            self.trace.append((self.now, *what))

    def wrong(self, promise: str, what: str) -> None:
        """A promise is broken."""
        self.note("WRONG", promise, what)
        self.wrongs.append(f"{promise}: {what} (at {self.now:.6g} s)")

    def check(self, right: bool, promise: str, *what: Any) -> None:
        """A promise holds if ``right``."""
        if not right:
            self.wrong(promise, " ".join(map(str, what)))

    # ---- calls on devices

    def begin(self, device: str, inputs: list[Input]) -> Call:
        """A device was called."""
        call = Call(len(self.calls), device, inputs, self.now)
        self.calls.append(call)
        for name, index in inputs:
            self.runs[name, index].append(call)
            inside = index < self.delivered[name] + self.window
            self.check(inside, "window", name, index, "starts after", self.delivered[name])
        self.note("call", call.number, device, *inputs)
        return call

    def end(self, call: Call, how: str) -> None:
        """That call has ended."""
        call.end, call.ended = how, self.now
        self.note("end", call.number, how)

    def counted(self, x: Input) -> int:
        """How many of the runs of an input count as attempts."""
        return sum(self._counts(call) for call in self.runs[x])

    def _counts(self, call: Call) -> bool:
        if call.end == "refused":  # another device is to run it, which costs no attempt
            return False
        if call.end == "raised":  # by the model: of several tasks each is then run alone
            return len(call.inputs) == 1
        if call.cancelled:  # with its device, or because nobody needs it, or it is to move
            return call.ended in self.lost[call.device]
        return True
