"""Statistics: snapshots of what a dispatcher and its devices have done so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ("DeviceState", "DeviceStats", "DispatcherStats", "HedgeStats", "percentile")


class DeviceState(StrEnum):
    """The state of a device. Only one that is up takes tasks."""

    #: not ready yet
    OPENING = "opening"
    #: up, nothing to do
    READY = "ready"
    #: up, running tasks
    BUSY = "busy"
    #: up, but silent for far too long, or on trial after repeated losses: gets one task at a time
    SUSPECT = "suspect"
    #: up, but fails tasks that work elsewhere: gets one task on trial now and then, while another
    #: device is up that does not
    DISTRUSTED = "distrusted"
    #: failed, and being closed in order to be opened again
    LOST = "lost"
    #: closed, and waiting until it is opened again
    BACKING_OFF = "backing_off"
    #: takes no more tasks; finishes what it runs if it may, and is then closed
    DRAINING = "draining"
    #: closed for good
    REMOVED = "removed"

    @property
    def up(self) -> bool:
        """Whether a device takes tasks in this state, now or when it has finished others."""
        return self in _UP


_UP = frozenset({DeviceState.READY, DeviceState.BUSY, DeviceState.SUSPECT, DeviceState.DISTRUSTED})


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """One device, and what it has done since the dispatcher was opened."""

    #: the device's name
    name: str
    #: the state it is in
    state: DeviceState
    #: tasks it finished
    tasks: int
    #: ``infer`` calls that returned
    batches: int
    #: device faults and failed tasks
    errors: int
    #: tasks it is running or has reserved now
    in_flight: int
    #: seconds in which it had at least one call in flight
    busy_seconds: float
    #: busy seconds / seconds since the first task of the dispatcher began
    utilisation: float
    #: estimated seconds between two finished tasks under full load; ``None`` until known
    service_time: float | None
    #: estimated seconds of one call with a full batch; ``None`` until known
    latency: float | None
    #: seconds since it came into its state (ready and busy are one here)
    state_seconds: float = 0.0
    #: why it is in its state, in words
    reason: str = ""
    #: how often it was lost or could not be opened; time in service makes up for losses
    failures: int = 0
    #: seconds until it is opened again, while it is backing off; ``None`` in any other state, and
    #: while it waits for calls left behind to end, as nobody knows when that is
    next_attempt: float | None = None
    #: how often it was opened, or tried to be
    generation: int = 0
    #: calls left behind that still go on, since they ignore that they were cancelled
    wedged: int = 0
    #: why it is given nothing for now though it is up: in words, with the rates that were measured;
    #: ``None`` while it takes part
    rests: str | None = None
    #: what its driver tells of itself, such as the options it has chosen
    details: Mapping[str, str | float | None] = field(default_factory=dict)
    #: tasks that failed on it and worked elsewhere; of a call with several, the call counts
    faults: int = 0
    #: seconds until it is given its next task on trial, while it is distrusted and another device
    #: is not; 0 if that is due; ``None`` otherwise
    next_trial: float | None = None

    @property
    def up(self) -> bool:
        """Whether it takes tasks: it is ready, busy, or suspect or distrusted and on trial."""
        return self.state.up


@dataclass(frozen=True, slots=True)
class HedgeStats:
    """What came of copies of overdue tasks. Those neither won, lost nor cancelled still run."""

    #: tasks of which a copy was started
    started: int = 0
    #: copies that brought the result
    won: int = 0
    #: copies whose task had its result from the first call
    lost: int = 0
    #: copies that came to nothing: their device failed, or nobody wanted the task any more
    cancelled: int = 0
    #: seconds in which copies kept devices busy
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DispatcherStats:
    """The whole dispatcher. Percentiles are over the last 4096 finished tasks, in seconds."""

    #: one record a device, in the order they were added
    devices: tuple[DeviceStats, ...]
    #: tasks accepted from sources and callers
    submitted: int
    #: tasks that ended, with a result or an error
    finished: int
    #: tasks that ended with an error
    failed: int
    #: attempts that were repeated
    retried: int
    #: tasks that failed as poison: too many devices were lost while they ran
    quarantined: int
    #: copies of overdue tasks
    hedging: HedgeStats
    #: tasks accepted and not yet in the window
    queue_depth: int
    #: tasks in the window that wait for a device
    waiting: int
    #: tasks on a device, running or reserved, copies included
    running: int
    #: finished results that wait for an earlier one
    reorder_buffer: int
    #: the most results that ever waited there
    max_reorder: int
    #: seconds from the first start of a task to the last end of one so far
    elapsed: float
    #: finished tasks / elapsed
    throughput: float
    #: seconds from acceptance until a result is ready for its consumer, median
    latency_p50: float
    #: the same, 95th percentile
    latency_p95: float
    #: the same, 99th percentile
    latency_p99: float
    #: seconds that a result waits in the reorder buffer, mean over all tasks
    hold_mean: float
    #: the same, 95th percentile
    hold_p95: float
    #: the same, the longest so far
    hold_max: float


def percentile(values: Iterable[float], q: float) -> float:
    """The ``q`` quantile (0 to 1) by the nearest-rank method; 0.0 for no values."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    rank = math.ceil(q * len(ordered) - 1e-9)
    return ordered[max(0, rank - 1)]
