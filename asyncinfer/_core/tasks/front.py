"""Which task of a stream is next, and since when: the time of its tasks counts from there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from asyncinfer._core.tasks.spans import NOT_RUN, Span, Waiting

__all__ = ("Front", "counted_from")


class Front:
    """Of one stream: which task is the next to be given to a device, and since when it is.

    How far a stream is read ahead is not its tasks' doing. So the time of a waiting task begins
    when it is its turn, as all tasks before it were given to devices or have ended; and anew
    whenever the stream gets on, as when an earlier one is tried again. Kept up only where there is
    a limit.
    """

    __slots__ = ("_first", "_got_on", "_since")

    def __init__(self) -> None:
        #: the index of the task whose turn it is
        self._first = -1
        self._since = -math.inf
        #: when the stream last got on
        self._got_on = -math.inf

    def got_on(self, now: float) -> None:
        """A device was given a task, or one that had been given was not finished in time."""
        self._got_on = now

    def note(self, waiting: Waiting, now: float) -> None:
        """Note whose turn it is."""
        first = next(iter(waiting)).first if waiting.tasks else -1
        if first != self._first:
            self._first, self._since = first, now

    def times(
        self, waiting: Waiting, before: float, *, none_up: bool
    ) -> Iterator[Iterable[tuple[Span, float]]]:
        """The tasks whose time runs, in places where the oldest is first: see ``Places``.

        That is one, and those that were started before and taken from their devices; or all of them
        while no device is up, as then it is nobody's turn. A task whose time began at ``before``,
        or earlier, is made a single one.
        """
        for span in [span for span in waiting if span.run is not NOT_RUN]:
            yield ((span, span.since),)
        if none_up:
            others = [span for span in waiting if span.run is NOT_RUN]
            yield [(span, max(span.since, self._got_on)) for span in others]
            return
        first = next(iter(waiting), None)
        if first is not None and first.run is NOT_RUN:
            since = self._since if first.first == self._first else math.inf
            since = max(first.since, since, self._got_on)
            if since <= before and first.count > 1:
                (first,) = waiting.take(1)
                waiting.merge([first])
            yield ((first, since),)


def counted_from(span: Span, call_began: float) -> float:
    """When the time of a task began that is in a call which began then."""
    if not span.lane.by_turn:
        return span.since
    if span.run is NOT_RUN:
        return call_began
    return min(span.since, call_began)  # a copy of it may have failed before the first call did
