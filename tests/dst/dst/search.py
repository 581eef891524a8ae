"""Many schedules, on all cores: which seeds break which promise."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dst.generate import schedule_of
from dst.running import run
from dst.schedule import Schedule
from dst.shrink import shrunk

__all__ = ("CHUNK", "Broken", "broken_by", "explained", "first_broken", "search")

#: schedules a process is given at a time
CHUNK = 100


class Broken(NamedTuple):
    """A seed whose schedule breaks promises."""

    seed: int
    promises: list[str]


def broken_by(seeds: Iterable[int]) -> list[Broken]:
    """Run the schedules of these seeds; return those that break something."""
    outcomes = ((seed, run(schedule_of(seed)).broken) for seed in seeds)
    return [Broken(seed, promises) for seed, promises in outcomes if promises]


def search(
    first: int, count: int, jobs: int, chunk: int = CHUNK
) -> Iterator[tuple[int, list[Broken]]]:
    """Run ``count`` schedules from seed ``first`` on; yield how many were run, and the broken."""
    last = first + count
    chunks = [range(at, min(at + chunk, last)) for at in range(first, last, chunk)]
    if jobs == 1:
        yield from map(_counted, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_counted, chunks)
        pool.close()
        pool.join()


def _counted(chunk: range) -> tuple[int, list[Broken]]:
    return len(chunk), broken_by(chunk)


def first_broken(seeds: Iterable[int]) -> Broken | None:
    """The first of these seeds whose schedule breaks something."""
    return next((found for seed in seeds for found in broken_by([seed])), None)


def explained(schedule: Schedule) -> tuple[Schedule, str]:
    """A smaller schedule that breaks the same promise first, and how it says so."""
    promise = _promise(schedule)
    smaller = shrunk(schedule, lambda other: _promise(other) == promise)
    return smaller, next(iter(run(smaller).broken), "broken no more: not deterministic")


def _promise(schedule: Schedule) -> str | None:
    """The name of the promise that is broken first."""
    broken = run(schedule).broken
    return broken[0].partition(":")[0] if broken else None
