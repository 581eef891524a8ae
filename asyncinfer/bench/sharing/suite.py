"""The suite ``sharing``: devices that share a host, and devices that fail beside a good one.

Real drivers of this host, every set of them beside all together; made-up hosts on a virtual clock;
and devices that fail tasks, made-up and real.
"""

from __future__ import annotations

import time

from asyncinfer.bench.record import Outcome
from asyncinfer.bench.sharing import failing, hosts, sets
from asyncinfer.bench.suite import Context
from asyncinfer.errors import AsyncInferError

__all__ = ("run",)


def run(context: Context) -> Outcome:
    """Measure everything; some five minutes, the short form half a minute."""
    start = time.perf_counter()
    outcome = Outcome("sharing")
    parts = {
        "devices of this host": sets.sets,
        "a torch device that fails": failing.real,
        "made-up devices that fail": failing.made_up,
        "made-up hosts": hosts.hosts,
    }
    for name, part in parts.items():
        try:
            part(context, outcome)
        except AsyncInferError as error:
            outcome.skipped.append(f"{name}: {error}")
    outcome.seconds = time.perf_counter() - start
    return outcome
