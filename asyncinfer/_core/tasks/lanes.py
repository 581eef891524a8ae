"""The lanes of all streams, taking turns task by task."""

from __future__ import annotations

from collections.abc import Iterator

from asyncinfer._core.tasks.lane import Lane
from asyncinfer._core.tasks.spans import SpanHome

__all__ = ("Lanes",)


class Lanes:
    """The lanes that may have tasks, and one numbering of the tasks that wait in all of them.

    The waiting tasks are numbered in turns: the first of each lane, then the second of each, and so
    on. The lane that a task was taken from last comes last, so a number is valid only until the
    next task is taken.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def join(self, lane: Lane) -> None:
        """Let a lane take part."""
        self._lanes.append(lane)

    def leave(self, lane: Lane) -> None:
        """Let it take part no more. Idempotent."""
        if lane in self._lanes:
            self._lanes.remove(lane)

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

    def locate(self, offset: int) -> tuple[Lane, int]:
        """The lane of the waiting task numbered ``offset``, and its offset in that lane."""
        left = [lane for lane in self._lanes if lane.waiting.tasks]
        level = 0
        while len(left) > 1:
            depth = min(lane.waiting.tasks for lane in left) - level
            if offset < depth * len(left):
                break
            offset -= depth * len(left)
            level += depth
            left = [lane for lane in left if lane.waiting.tasks > level]
        rounds, place = divmod(offset, len(left))
        return left[place], level + rounds

    def took_turn(self, lane: Lane) -> None:
        """A task of ``lane`` was handed to a device: the other lanes come first now."""
        if self._lanes[-1] is not lane:
            self._lanes.remove(lane)
            self._lanes.append(lane)

    def calls_beside(self, lane: SpanHome) -> Lane | None:
        """The lane of ``infer``, if calls wait there and ``lane`` is another one."""
        calls = (each for each in self._lanes if not each.one_context and each is not lane)
        return next((each for each in calls if each.waiting), None)
