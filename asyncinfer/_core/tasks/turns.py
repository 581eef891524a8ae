"""Whose task is next: shares and priorities."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heapreplace
from itertools import islice, repeat
from typing import NamedTuple, Protocol

from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import ConfigError
from asyncinfer.options import LEAST_URGENT

__all__ = ("PLAIN", "Claim", "Leaf", "Queue", "Turns")

#: the most and the least urgent priority, and the one that 0 stands for
URGENT, IDLE, USUAL = 1, LEAST_URGENT, 3
#: tasks that a class is given for each one of the next less urgent class, while both have some
STEP = 4.0
#: shares between which no flow waits for more turns than floating-point numbers can count
SMALLEST, LARGEST = 1e-3, 1e3
#: most parts of a client: who is next is found by going down through all of them
DEEPEST = 16
#: most that are remembered though they have no tasks
MOST_RESTING = 256


class Claim(NamedTuple):
    """What a stream or a call may claim of the devices."""

    #: beside the others of its class
    share: float = 1.0
    #: its class: 1 is the most urgent
    priority: int = USUAL
    #: whose it is, from the whole to the part; nobody's in particular if empty
    client: tuple[Hashable, ...] = ()

    @classmethod
    def of(cls, share: float, priority: int, client: Hashable | None) -> Claim:
        """The one that these arguments of ``infer`` or ``stream`` stand for.

        Raises ``ConfigError``.
        """
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not (number and SMALLEST <= share <= LARGEST):
            text = f"share must be a number from {SMALLEST:g} to {LARGEST:g}, not {share!r}"
            raise ConfigError(text)
        whole = isinstance(priority, int) and not isinstance(priority, bool)
        if not (whole and 0 <= priority <= IDLE):
            text = f"priority must be {URGENT} (most urgent) to {IDLE}, or 0, not {priority!r}"
            raise ConfigError(text)
        path = () if client is None else client if isinstance(client, tuple) else (client,)
        if len(path) > DEEPEST:
            raise ConfigError(f"client must have at most {DEEPEST} parts, not {len(path)}")
        try:
            hash(path)
        except TypeError as error:
            raise ConfigError(f"client must be hashable, as a text is: {error}") from None
        return cls(float(share), priority or USUAL, path)


PLAIN = Claim()


class Queue(Protocol):
    """Waiting tasks, as far as it matters here."""

    #: how many there are
    tasks: int


class Turn:
    """Who takes turns with others: a class, a client, a stream, the calls of one claim."""

    __slots__ = ("active", "parent", "start", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        #: the virtual time at which its next task begins; that is done ``1 / weight`` later
        self.start = 0.0
        #: whether it had tasks when that was looked at last
        self.active = False
        #: those with whom it takes turns
        self.parent: Group | None = None

    @property
    def busy(self) -> bool:
        """Whether tasks wait."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether nobody would miss it if it were forgotten."""
        raise NotImplementedError

    def waiting(self, *, calls: bool) -> int:
        """How many tasks wait, or how many calls do."""
        raise NotImplementedError

    def order(self, offset: int, *, calls: bool) -> Iterator[tuple[Leaf, int]]:
        """The tasks in the order of turns from ``offset`` on: whose each is, and its number there.

        With ``calls`` there are no others.
        """
        raise NotImplementedError

    def forgotten(self) -> None:
        """It was idle, and takes part no more."""


class Leaf(Turn):
    """One queue of tasks. Tasks of ``calls`` may share a burst with those of other such queues."""

    __slots__ = ("calls", "lane", "queue")

    def __init__(self, lane: int, queue: Queue, *, calls: bool = False) -> None:
        super().__init__()
        #: the number of the lane it is of
        self.lane = lane
        self.queue = queue
        self.calls = calls

    @property
    def busy(self) -> bool:
        """Whether tasks wait."""
        return self.queue.tasks > 0

    @property
    def idle(self) -> bool:
        """Whether nobody would miss it if it were forgotten."""
        return not self.queue.tasks

    def waiting(self, *, calls: bool) -> int:
        """How many tasks wait, or how many calls do."""
        return self.queue.tasks if self.calls or not calls else 0

    def order(self, offset: int, *, calls: bool) -> Iterator[tuple[Leaf, int]]:
        """The tasks in the order of turns from ``offset`` on: whose each is, and its number there.

        With ``calls`` there are no others.
        """
        return zip(repeat(self), range(offset, self.queue.tasks))

    def take(self, count: int, offset: int = 0) -> list[Span]:
        """Remove and return ``count`` tasks from ``offset`` on, or as many as there are."""
        raise NotImplementedError

    def index(self, offset: int) -> int:
        """Index in its stream of the task at ``offset``."""
        raise NotImplementedError


class Group(Turn):
    """Some who take turns with one another, and are one to all others."""

    __slots__ = ("_groups", "children", "key", "time")

    def __init__(self, weight: float = 1.0, key: Hashable = None) -> None:
        super().__init__(weight)
        self.key = key
        self.children: dict[Turn, None] = {}
        self._groups: dict[Hashable, Group] = {}
        #: the virtual time: where the task began that was served last; who comes anew begins here
        self.time = 0.0

    @property
    def busy(self) -> bool:
        """Whether tasks wait."""
        return any(child.busy for child in self.children)

    @property
    def idle(self) -> bool:
        """Whether nobody would miss it if it were forgotten."""
        return not self.children

    def waiting(self, *, calls: bool) -> int:
        """How many tasks wait, or how many calls do."""
        return sum(child.waiting(calls=calls) for child in self.children)

    def join(self, child: Turn) -> None:
        """Let one more take part."""
        child.parent = self
        self.children[child] = None

    def leave(self, child: Turn) -> None:
        """Let one take part no more."""
        child.parent = None
        del self.children[child]
        if isinstance(child, Group):
            del self._groups[child.key]

    def group(self, key: Hashable, weight: float) -> Group:
        """The group in here with this key, made if there is none."""
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Group(weight, key)
            self.join(found)
        return found

    def front(self) -> Turn:
        """Whose task would be done first; of two who are even, the one that came here before.

        One that had no tasks for a while begins anew, and saves up no turns.
        """
        best, least = None, math.inf
        for child in self.children:
            if not child.busy:
                child.active = False
                continue
            if not child.active:
                child.active = True
                child.start = max(child.start, self.time)
            done = child.start + 1 / child.weight
            if done < least:
                best, least = child, done
        if best is None:
            raise IndexError("no task waits")
        if best.start > self.time:
            self.time = best.start
        return best

    def locate(self, offset: int) -> tuple[Turn, int]:
        """Whose the task numbered ``offset`` is, in the order of turns, and its number there."""
        front = self.front()
        return next(self._order(offset, calls=False)) if offset else (front, 0)

    def order(self, offset: int, *, calls: bool) -> Iterator[tuple[Leaf, int]]:
        """The tasks in the order of turns from ``offset`` on: whose each is, and its number there.

        With ``calls`` there are no others.
        """
        orders: dict[Turn, Iterator[tuple[Leaf, int]]] = {}
        self.front()
        for child, at in self._order(offset, calls=calls):
            if child not in orders:
                orders[child] = child.order(at, calls=calls)
            yield next(orders[child])

    def _order(self, offset: int, *, calls: bool) -> Iterator[tuple[Turn, int]]:
        """For each task from ``offset`` on, which child it is of, and which of its tasks it is."""
        counted = [(child, child.waiting(calls=calls)) for child in self.children if child.active]
        some = [(child, count) for child, count in counted if count]
        level = _level(some, offset) if offset else -math.inf
        heap: list[tuple[float, int, int, int]] = []
        for number, (child, count) in enumerate(some):
            given = max(0, (level - child.start) * child.weight)
            given = min(count, math.floor(given)) if given else 0
            offset -= given
            if given < count:
                heap.append((child.start + (given + 1) / child.weight, number, given, count))
        heapify(heap)
        while heap:
            done, number, given, count = heap[0]
            child = some[number][0]
            if offset <= 0:
                yield child, given
            offset -= 1
            if given + 1 < count:
                heapreplace(heap, (done + 1 / child.weight, number, given + 1, count))
            else:
                heappop(heap)

    def everybody(self) -> Iterator[Turn]:
        """All that are in here, however deep."""
        for child in self.children:
            yield child
            if isinstance(child, Group):
                yield from child.everybody()


class Turns:
    """Who takes turns with whom, and whose task is next.

    This is stride scheduling (C. A. Waldspurger and W. E. Weihl: Stride Scheduling: Deterministic
    Proportional-Share Resource Management, MIT/LCS/TM-528, 1995), in its hierarchical form. The
    task is served first that would be done first if all were served at once, each at a rate in
    proportion to its weight. Who comes anew begins at the virtual time, which is where the task
    began that was served last, as in start-time fair queueing (P. Goyal, H. M. Vin and H. Cheng,
    SIGCOMM 1996): nobody saves up turns while having no tasks.

    Classes of priority take turns with one another, with weights of 16, 4, 1, 1/4 and 1/16; within
    a class its streams, the calls that are nobody's in particular, and clients, by their shares;
    within a client its streams and calls. Nobody starves: who is served is put behind by that, and
    who waits stays in place. So one of weight ``w`` has one of ``W / w`` tasks at least, where
    ``W`` is the weight of all with whom it takes turns.
    """

    def __init__(self) -> None:
        self._root = Group()
        self._classes = {p: Group(STEP ** (USUAL - p), p) for p in range(URGENT, IDLE + 1)}
        for group in self._classes.values():  # of those that are even the most urgent is first
            self._root.join(group)
        #: the only one with tasks, as long as that is so; nothing was noted of the others since
        self._alone: Leaf | None = None
        #: whether all was served that waited since
        self._all_served = False
        #: those that may be idle, and are remembered while they are ahead of their turn
        self._resting: dict[Turn, None] = {}

    def join(self, leaf: Leaf, claim: Claim) -> None:
        """Let one more take part."""
        group, share = self._classes[claim.priority], claim.share
        for part in claim.client:
            group, share = group.group((part, share), share), 1.0
        leaf.weight = share
        group.join(leaf)

    def leave(self, leaf: Leaf) -> None:
        """Let it take part no more. Idempotent."""
        group = leaf.parent
        if leaf is self._alone:
            self._alone = None
        if group is not None:
            group.leave(leaf)
            self.rests(group)
            self.forget()

    def locate(self, offset: int) -> tuple[Leaf, int]:
        """Whose the waiting task numbered ``offset`` is, in the order of turns, and which."""
        self._take_note()
        found: Turn = self._root
        while isinstance(found, Group):
            found, offset = found.locate(offset)
        assert isinstance(found, Leaf)  # noqa: S101  # there is no other kind
        return found, offset

    def calls(self, count: int, offset: int) -> Iterator[tuple[Leaf, int]]:
        """Of the calls alone, ``count`` in the order of turns: whose, and their numbers there."""
        return islice(self._root.order(offset, calls=True), count)

    def served(self, leaf: Leaf, tasks: int, *, alone: bool = False) -> None:
        """So many of its tasks were handed out; nobody else had any if it was ``alone``."""
        if alone:
            self._alone = leaf
            self._all_served = not leaf.queue.tasks
        at: Turn = leaf
        while at.parent is not None:
            if alone and at.start > at.parent.time:
                at.parent.time = at.start
            at.start += tasks / at.weight
            at = at.parent

    def returned(self, leaf: Leaf, tasks: int) -> None:
        """So many of them came back, and were not run."""
        at: Turn = leaf
        while at.parent is not None:
            at.start -= tasks / at.weight
            at = at.parent

    def _take_note(self) -> None:
        """Note who had tasks, and begin anew if nobody had, while it was done without a look."""
        if self._alone is None and not self._all_served:
            return
        for each in (self._root, *self._root.everybody()):
            each.active = False
            if self._all_served:
                each.start = 0.0
                if isinstance(each, Group):
                    each.time = 0.0
        alone: Turn | None = None if self._all_served else self._alone
        while alone is not None:
            alone.active, alone = True, alone.parent
        self._alone, self._all_served = None, False

    # ---- those that are to be forgotten

    def rests(self, turn: Turn) -> None:
        """It may be idle: then ``forget`` it as soon as it is not ahead of its turn."""
        if turn.parent is not self._root:
            self._resting[turn] = None

    def forget(self) -> None:
        """Forget those that are idle and would come as anew, and the oldest of too many."""
        if not self._resting:
            return
        busy: dict[Group, bool] = {}
        left = list(reversed(self._resting))
        while left:
            turn = left.pop()
            group = turn.parent
            if not turn.idle or group is None:
                del self._resting[turn]
                continue
            ahead = turn.start > group.time and len(self._resting) <= MOST_RESTING
            if ahead and group not in busy:
                busy[group] = group.busy
            if not (ahead and busy[group]):
                del self._resting[turn]
                group.leave(turn)
                turn.forgotten()
                if group.parent is not self._root and group not in self._resting:
                    self._resting[group] = None
                    left.append(group)


def _level(some: list[tuple[Turn, int]], tasks: int) -> float:
    """The virtual time until which these, who have so many each, are given ``tasks`` together.

    That is if a part of a task were given, too.
    """
    begins = [(turn.start, turn.weight) for turn, _ in some]
    ends = [(turn.start + count / turn.weight, -turn.weight) for turn, count in some]
    level, left, rate = -math.inf, float(tasks), 0.0
    for at, change in sorted(begins + ends):
        given = rate * (at - level) if rate > 0 else 0.0
        if given >= left:
            break
        level, left, rate = at, left - given, rate + change
    return level + left / rate if rate > 0 else level
