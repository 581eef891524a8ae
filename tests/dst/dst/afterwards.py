"""What must hold once the dispatcher was left and everybody has ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from asyncinfer.stats import DispatcherStats
from dst.clock import WatchedLoop
from dst.devices import FaultyDriver
from dst.ledger import Ledger

if TYPE_CHECKING:
    from dst.work import Work

__all__ = ("check_attempts", "check_left", "check_left_behind", "check_stats")


def check_left_behind(ledger: Ledger, allowed: int) -> None:
    """Right after closing: what ignores its cancellation runs still, and only so many others."""
    names = [task.get_name() for task in asyncio.all_tasks() - ledger.stubborn]
    left = sorted(name for name in names if name.startswith("asyncinfer"))
    ledger.check(len(left) <= allowed, "leak", "left behind:", left)


def check_left(
    ledger: Ledger, loop: WatchedLoop, drivers: Mapping[str, FaultyDriver], sources: Collection[str]
) -> None:
    """Nothing is left of all that was begun."""
    left = sorted(t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task())
    ledger.check(not left, "leak", "asyncio tasks:", left)
    ledger.check(not loop.timers, "leak", "timers:", loop.timers)
    still_open = [name for name, driver in drivers.items() if driver.is_open]
    ledger.check(not still_open, "leak", "open devices:", still_open)
    ledger.check(not sources, "leak", "open sources:", sorted(sources))


def check_attempts(ledger: Ledger, most: int) -> None:
    """No input was run more often than it may be, by what devices say."""
    for x in ledger.runs:
        counted = ledger.counted(x)
        ledger.check(counted <= most, "attempts", x, "was run", counted, "times")


def check_stats(
    stats: DispatcherStats,
    events: Counter[str],
    work: Work,
    ledger: Ledger,
    drivers: Mapping[str, FaultyDriver],
) -> None:
    """The statistics agree with the events, and with what came."""
    check = ledger.check
    now = (stats.queue_depth, stats.waiting, stats.running, stats.reorder_buffer)
    check(now == (0, 0, 0, 0), "stats", "left:", *now)
    check(stats.failed == events["task.failed"], "stats", "failed", stats.failed)
    check(stats.retried == events["task.retried"], "stats", "retried", stats.retried)
    hedged, quarantined = stats.hedging.started, stats.quarantined
    check(hedged == events["task.hedged"], "stats", "hedged", hedged)
    check(quarantined == events["task.quarantined"], "stats", "quarantined", quarantined)
    ended = events["task.finished"] + events["task.failed"]
    check(stats.finished <= ended, "stats", "finished", stats.finished, "of", ended)
    if not work.dropped:
        numbers = stats.submitted, stats.finished, ledger.delivered.total()
        check(len({*numbers, ended}) == 1, "stats", "do not add up:", *numbers, ended)
    for device in stats.devices:
        answered = sum(len(call.inputs) for call in ledger.calls if call.device == device.name)
        check(device.tasks <= answered, "stats", device.name, "counts", device.tasks)
        calls = drivers[device.name].infers
        check(device.batches <= calls, "stats", device.name, "counts", device.batches, "calls")
