"""What a scheduling policy is asked, and what it may know about devices and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from asyncinfer.scheduling.census import Census

__all__ = ("ALL_REST", "Grant", "Policy", "PoolView", "WorkerView")


class Grant(NamedTuple):
    """Skip ``skip`` waiting tasks, then take ``take`` consecutive ones in one call."""

    #: waiting tasks to leave to other devices
    skip: int
    #: consecutive tasks for one call
    take: int
    #: whether the call is to show how fast the device is now: who waits for it gets a copy soon
    trial: bool = False


#: answer of a policy: this device rests, and so would every device that needs longer for one task
ALL_REST = Grant(0, 0)


class WorkerView(Protocol):
    """What a policy may know of a device. Times are seconds; ``nan`` while unknown."""

    #: its place in the list of devices, from 0
    position: int
    #: most tasks that its driver takes in one call
    max_batch: int
    #: most tasks that one call should have: larger calls would take too long, or bring no more
    batch_limit: int
    #: duration of one call with ``batch_limit`` tasks
    latency: float
    #: time between two finished tasks while it is kept busy
    interval: float
    #: calls that it has answered
    batches: int

    @property
    def repeatable(self) -> bool:
        """Whether a task that it runs may be run by another device as well."""
        ...

    @property
    def in_flight(self) -> int:
        """Tasks that the device is running or has reserved."""
        ...

    @property
    def deviation(self) -> float:
        """Mean relative deviation of the device's calls from what was expected, 0 to 1."""
        ...

    def expect(self, batch: int) -> float:
        """Duration of one call with ``batch`` tasks."""
        ...

    def batch_within(self, seconds: float) -> int:
        """Tasks of the largest call that takes less than ``seconds``; 0 while unknown."""
        ...

    def free_in(self, now: float) -> float:
        """Time until the device can start another call: 0 when idle, growing again once overdue."""
        ...

    def rested(self, now: float) -> float:
        """Time since the device last finished something or changed its state."""
        ...


class PoolView(Protocol):
    """What a policy may know of the dispatcher."""

    #: seconds on the event loop's clock
    now: float

    @property
    def waiting(self) -> int:
        """Tasks inside the window that may be started now."""
        ...

    @property
    def backlog(self) -> bool:
        """Whether more tasks queue behind the window."""
        ...

    @property
    def devices(self) -> Sequence[WorkerView]:
        """The devices that are up, by position."""
        ...

    @property
    def census(self) -> Census:
        """The devices that are up and not long overdue, counted by their latency.

        For policies that cannot afford to look at each of many devices.
        """
        ...

    def index(self, offset: int) -> int:
        """Index in its stream of the waiting task at ``offset``."""
        ...


class Policy(Protocol):
    """Chooses tasks for devices. One instance serves one dispatcher.

    A policy with an attribute ``chooses_sets = True`` is asked for some of the devices that share
    something only: those that do most together, as is found out while they work.
    """

    #: whether a very fast device may be given several calls' worth of tasks at once
    reserves: bool

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """What the free ``device`` takes now; ``None`` if nothing. At least one task is waiting.

        Free devices are asked in turn, the one with the shortest single call first. After the
        answer ``ALL_REST`` the others are not asked, except for one of them now and then.
        """
        ...
