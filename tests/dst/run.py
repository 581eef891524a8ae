"""Random schedules of faults on the virtual clock, and every promise checked after each.

    python tests/dst/run.py --schedules 100000       the last line: schedules N broken M
    python tests/dst/run.py --seed 42                one of them again, step by step
    python tests/dst/run.py --replay schedule.json   one that was printed, shrunk or changed

The exit status is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from dst.generate import schedule_of
from dst.running import run
from dst.schedule import Schedule
from dst.search import Broken, explained, search

#: broken seeds that are shrunk and shown; more are only counted
SHOWN = 10


def main() -> int:
    options = parsed()
    if options.replay is not None:
        return replay(Schedule.loads(options.replay.read_text()))
    if options.seed is not None:
        return replay(schedule_of(options.seed))
    broken = found(options.first, options.schedules, options.jobs)
    for seed, promises in broken[:SHOWN]:
        show(seed, promises)
    print(f"schedules {options.schedules} broken {len(broken)}")
    return 1 if broken else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="run this one only, and show what happens")
    parser.add_argument("--replay", type=Path, help="run this schedule, and show what happens")
    return parser.parse_args()


def found(first: int, count: int, jobs: int) -> list[Broken]:
    """Run them all, and tell of it on the way."""
    begun, shown, ran = time.monotonic(), 0.0, 0
    broken: list[Broken] = []
    for more, some in search(first, count, jobs):
        ran += more
        broken += some
        for seed, promises in some:
            print(f"seed {seed}: {promises[0]}", file=sys.stderr, flush=True)
        passed = time.monotonic() - begun
        if passed - shown > 5 or ran == count:
            shown = passed
            rate = 60 * ran / passed
            text = f"{ran} of {count} schedules, {rate:.0f} a minute, broken {len(broken)}"
            print(text, file=sys.stderr, flush=True)
    return sorted(broken)


def show(seed: int, promises: list[str]) -> None:
    """Shrink and print one."""
    print(f"seed {seed}: {promises[0]}")
    smaller, broken = explained(schedule_of(seed))
    print(f"  shrunk: {broken}")
    print(f"  {smaller.dumps()}", flush=True)


def replay(schedule: Schedule) -> int:
    """Run one schedule and print all that happens."""
    outcome = run(schedule)
    print(schedule.dumps())
    for note in outcome.trace:
        print(*note)
    for promise in outcome.broken:
        print(f"broken: {promise}")
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
