"""The lanes of all streams and calls, taking turns task by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.spans import Span, SpanHome
from asyncinfer._core.tasks.turns import Leaf, Turns

__all__ = ("Lanes",)


class Lanes:
    """The lanes that may have tasks, and one numbering of the tasks that wait in all of them.

    The waiting tasks are numbered in the order in which :class:`Turns` has them served. A number is
    valid only until the next task is taken, or comes.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._turns = Turns()

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def join(self, lane: Lane) -> None:
        """Let a lane take part."""
        self._lanes.append(lane)
        lane.take_turns(self._turns)

    def leave(self, lane: Lane) -> None:
        """Let it take part no more. Idempotent."""
        if lane in self._lanes:
            self._lanes.remove(lane)
            lane.take_no_turns()

    def admit(self) -> None:
        """Move queued tasks into the windows, as far as these reach."""
        for lane in self._lanes:
            lane.admit()

    @property
    def waiting(self) -> int:
        """Tasks inside the windows that may be started."""
        waiting = 0
        for lane in self._lanes:
            waiting += lane.waiting.tasks
        return waiting

    @property
    def backlog(self) -> bool:
        """Whether tasks queue behind a window."""
        return any(lane.intake.tasks for lane in self._lanes)

    @property
    def unfinished(self) -> int:
        """How many accepted tasks have not ended. Draining waits until this is 0."""
        unfinished = 0
        for lane in self._lanes:
            unfinished += lane.unfinished
        return unfinished

    def _alone(self) -> Leaf | None:
        """Whose all waiting tasks are; ``None`` if they are of several who take turns."""
        found: Leaf | None = None
        for lane in self._lanes:
            if lane.waiting.tasks:
                if found is not None:
                    return None
                found = lane.only_turn
                if found is None:
                    return None
        return found

    def _locate(self, offset: int) -> tuple[Leaf, int]:
        """Whose the waiting task numbered ``offset`` is, and its number there."""
        alone = self._alone()
        return (alone, offset) if alone is not None else self._turns.locate(offset)

    def index(self, offset: int) -> int:
        """Index in its stream of the waiting task numbered ``offset``."""
        turn, offset = self._locate(offset)
        return turn.index(offset)

    def comes_before(self, offset: int, task: Span) -> bool:
        """Whether the waiting task numbered ``offset`` is of this one's stream, and before it."""
        turn, offset = self._locate(offset)
        return turn.lane == task.lane.number and turn.index(offset) <= task.first

    def calls_beside(self, lane: SpanHome) -> bool:
        """Whether calls of ``infer`` wait, and ``lane`` is another one."""
        calls = (each for each in self._lanes if not each.one_context and each is not lane)
        return any(each.waiting.tasks for each in calls)

    def take_calls(self, count: int) -> list[Span]:
        """Remove the first waiting calls, in the order of turns."""
        return self._take_calls(count, 0)

    def take(self, count: int, offset: int = 0, *, only: int | None = None) -> list[Span]:
        """Remove the waiting task numbered ``offset``, and those that go with it into one burst.

        These are the next of its stream, or the next calls, whosever they are: ``count`` together
        at most. None are removed if the first one is not of the lane numbered ``only``.
        """
        alone = self._alone()
        turn, at = (alone, offset) if alone is not None else self._turns.locate(offset)
        if only is not None and turn.lane != only:
            return []
        if turn.calls and alone is None and count > 1:
            return self._take_calls(count, offset)
        before = turn.queue.tasks
        spans = turn.take(count, at)
        self._turns.served(turn, before - turn.queue.tasks, alone=alone is not None)
        self._turns.forget()
        return spans

    def _take_calls(self, count: int, offset: int) -> list[Span]:
        """Remove calls in the order of turns; what is skipped are calls, too, as far as may be."""
        waiting = sum(lane.waiting.tasks for lane in self._lanes if not lane.one_context)
        offset = min(offset, max(0, waiting - count))
        first: dict[Leaf, int] = {}
        counts: Counter[Leaf] = Counter()
        for turn, at in self._turns.calls(count, offset):
            first.setdefault(turn, at)
            counts[turn] += 1
        calls: list[Span] = []
        for turn, number in counts.items():
            calls += turn.take(number, first[turn])
            self._turns.served(turn, number)
        self._turns.forget()
        return calls
