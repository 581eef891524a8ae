"""The waiting calls of ``infer``: those of each claim in a flow of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import merge
from typing import Any

from asyncinfer._core.tasks.intake import Intake
from asyncinfer._core.tasks.spans import Span, Waiting
from asyncinfer._core.tasks.turns import PLAIN, Claim, Leaf, Turns

__all__ = ("Call", "CallFlow", "WaitingCalls")


class CallQueue(Intake):
    """The calls of one flow, each a span of one, in the order in which they came."""

    def take_from(self, offset: int, count: int) -> list[Span]:
        """Remove and return ``count`` of them from ``offset`` on, or as many as there are."""
        calls = self._queue
        count = min(count, len(calls) - offset)
        calls.rotate(-offset)
        taken = [calls.popleft() for _ in range(count)]
        calls.rotate(offset)
        self._went(count)
        return taken

    def index(self, offset: int) -> int:
        """The number of the call at ``offset``."""
        return self._queue[offset].first

    def put_back(self, call: Span) -> None:
        """Put one that was taken to its place again."""
        calls = self._queue
        at = next((at for at, other in enumerate(calls) if other.first > call.first), len(calls))
        calls.insert(at, call)
        self.tasks += 1

    def remove(self, call: Span) -> bool:
        """Take one out; return whether it was there."""
        if call not in self._queue:
            return False
        self._queue.remove(call)
        self._went(1)
        return True

    def _went(self, count: int) -> None:
        self.tasks -= count
        self._call()


class Call(Span):
    """A task of ``infer``, which knows the flow it is of."""

    __slots__ = ("flow",)

    flow: CallFlow


class CallFlow(Leaf):
    """The calls of one claim. The engine queues calls here as it queues tasks in a lane.

    It lasts for as long as calls wait, and until it is not ahead of its turn any more.
    """

    __slots__ = ("_accept", "_all", "claim", "intake")

    def __init__(
        self,
        claim: Claim,
        calls: WaitingCalls,
        most: int,
        accept: Callable[[CallFlow, list[Any]], Call],
    ) -> None:
        self.intake = CallQueue(most)
        super().__init__(calls.lane, self.intake, calls=True)
        self.claim = claim
        self._all = calls
        self._accept = accept

    def accept(self, inputs: list[Any]) -> Call:
        """Make a task of the one input, and let it wait."""
        call = self._accept(self, inputs)
        self.intake.put_nowait(call)
        self._all.came(self)
        return call

    def add(self, call: Call) -> None:
        """Let one wait that was accepted before, even if there is no room."""
        self.intake.add(call)
        self._all.came(self)

    async def room(self) -> None:
        """Wait until one more may wait. The flow may be forgotten by then, as calls went."""
        try:
            await self.intake.room()
        finally:
            self._all.left(self)

    def admit(self) -> None:
        """Calls have no window: all of them may be started."""

    def put_back(self, call: Call) -> None:
        """Let one wait again that was taken and not started."""
        self.intake.put_back(call)
        self._all.came(self)

    def take(self, count: int, offset: int = 0) -> list[Span]:
        """Remove and return ``count`` calls from ``offset`` on, or as many as there are."""
        taken = self.intake.take_from(offset, count)
        self._all.went(self, len(taken))
        return taken

    def remove(self, call: Span) -> None:
        """Take one out, if it is there."""
        if self.intake.remove(call):
            self._all.went(self, 1)

    def index(self, offset: int) -> int:
        """The number of the call at ``offset``."""
        return self.intake.index(offset)

    @property
    def idle(self) -> bool:
        """Whether nobody would miss it if it were forgotten."""
        return not (self.intake.tasks or self.intake.awaited)

    def forgotten(self) -> None:
        """It was idle, and takes part no more."""
        self._all.forget(self)


class WaitingCalls(Waiting):
    """The waiting calls of all flows, which take turns with one another and with streams."""

    __slots__ = ("_accept", "_busy", "_flows", "_most", "lane", "turns")

    def __init__(self, lane: int, most: int, accept: Callable[[CallFlow, list[Any]], Call]) -> None:
        super().__init__()
        #: the number of the lane they are of
        self.lane = lane
        self._most = most
        self._accept = accept
        self._flows: dict[Claim, CallFlow] = {}
        #: those with calls
        self._busy: dict[CallFlow, None] = {}
        #: with whom they take turns
        self.turns = Turns()

    @property
    def flows(self) -> Collection[CallFlow]:
        """Those that are remembered."""
        return self._flows.values()

    @property
    def alone(self) -> CallFlow | None:
        """The flow that has calls, if it is the only one."""
        return next(iter(self._busy)) if len(self._busy) == 1 else None

    def flow(self, claim: Claim) -> CallFlow:
        """The one for calls with this claim, made if there is none."""
        flow = self._flows.get(claim)
        if flow is None:
            flow = self._flows[claim] = CallFlow(claim, self, self._most, self._accept)
            self.turns.join(flow, claim)
            self._rests(flow)
        return flow

    def came(self, flow: CallFlow) -> None:
        """A flow has one more."""
        self._busy[flow] = None
        self.tasks += 1

    def went(self, flow: CallFlow, calls: int) -> None:
        """A flow has so many fewer."""
        self.tasks -= calls
        if not flow.intake.tasks:
            self._busy.pop(flow, None)
            self._rests(flow)

    def left(self, flow: CallFlow) -> None:
        """Somebody waits for room in a flow no longer."""
        self._rests(flow)
        self.turns.forget()

    def _rests(self, flow: CallFlow) -> None:
        if flow.claim != PLAIN:  # which is kept, since most calls have no other
            self.turns.rests(flow)

    def forget(self, flow: CallFlow) -> None:
        """A flow is not needed any more."""
        del self._flows[flow.claim]

    # ---- as of one lane

    def __iter__(self) -> Iterator[Span]:
        queues = [flow.intake for flow in self._busy]
        return iter(queues[0]) if len(queues) == 1 else merge(*queues, key=_first)

    def merge(self, spans: list[Span]) -> None:
        """Let these wait again."""
        for call in spans:
            assert isinstance(call, Call)  # noqa: S101  # no others come here
            if call.flow.parent is None:  # it was forgotten meanwhile
                call.flow = self.flow(call.flow.claim)
            call.flow.put_back(call)
            self.turns.returned(call.flow, 1)

    def remove(self, span: Span) -> None:
        """Take a call out, if it is there."""
        assert isinstance(span, Call)  # noqa: S101  # no others come here
        span.flow.remove(span)

    def clear(self) -> list[Span]:
        """Remove and return all calls."""
        calls = [call for flow in list(self._busy) for call in flow.take(flow.intake.tasks)]
        self.turns.forget()
        return calls


def _first(span: Span) -> int:
    return span.first
