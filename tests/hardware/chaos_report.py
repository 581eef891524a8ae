"""The one line at the end of a chaos run."""

from __future__ import annotations

import statistics
from collections import Counter

__all__ = ("report",)

#: least part of the healthy devices' rates that the stream has to keep while one is struck
LEAST = 0.9


def report(chaos):
    """What was found out, and whether it is as promised."""
    tasks, jobs = chaos.tasks.facts(), chaos.jobs
    problems = [*chaos.problems, *jobs.problems]
    if chaos.tasks.first_error:
        problems.append(chaos.tasks.first_error)
    kinds = Counter(episode.kind for episode in chaos.episodes)
    recovery = {kind: _recovery(chaos.episodes, kind) for kind in kinds}
    throughput = _of_healthy(chaos.episodes, "finished")
    broken = any(tasks[what] for what in ("lost", "doubled", "misordered", "wrong", "failed"))
    late = any(found["of_bound"] > 1 for found in recovery.values())
    return {
        "minutes": round(chaos.seconds / 60, 2),
        "seed": chaos.seed,
        **tasks,
        "faults": {**kinds, "interrupted": jobs.interrupted, "disk_full": jobs.disk_full},
        "recovery_seconds": recovery,
        "throughput_of_healthy": throughput,
        "delivered_of_healthy": _of_healthy(chaos.episodes, "delivered"),
        "throughput_by_kind": {
            kind: _of_healthy([one for one in chaos.episodes if one.kind == kind], "finished")
            for kind in kinds
        },
        "troubles": {
            kind: sum(one.troubles for one in chaos.episodes if one.kind == kind) for kind in kinds
        },
        "rates": {name: round(rate, 1) for name, rate in chaos.rates.items()},
        "by_device": dict(chaos.tasks.by_device),
        "files_complete": jobs.complete,
        "processors_used": {phase: round(used, 2) for phase, used in chaos.processors.items()},
        "problems": problems,
        "ok": not (problems or broken or late or throughput < LEAST),
    }


def _recovery(episodes, kind):
    """``bound`` is that of the slowest return, ``of_bound`` how near any came to its own."""
    found = [episode for episode in episodes if episode.kind == kind]
    seconds = [episode.seconds for episode in found]
    slowest = max(found, key=lambda episode: episode.seconds)
    return {
        "n": len(found),
        "median": round(statistics.median(seconds), 2),
        "max": round(max(seconds), 2),
        "bound": round(slowest.bound, 2),
        "of_bound": round(max(episode.seconds / episode.bound for episode in found), 2),
    }


def _of_healthy(episodes, what):
    """Tasks that were ``finished`` or ``delivered``, over what the healthy devices can do."""
    healthy = sum(episode.healthy for episode in episodes)
    done = sum(getattr(episode, what) for episode in episodes)
    return round(done / healthy, 3) if healthy else 0.0
