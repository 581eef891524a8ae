"""The suite ``peers``: asyncinfer beside other ways to serve the same model under the same load.

Each peer lives in a virtual environment of its own and is skipped, with the command that makes
it, where it is absent::

    python -m asyncinfer.bench.peers            # makes all environments
    python -m asyncinfer.bench.peers mosec      # makes one
    asyncinfer bench --suite peers
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from asyncinfer._optional import run_async
from asyncinfer._text import rate
from asyncinfer.bench.peers import report
from asyncinfer.bench.peers.environments import install, missing
from asyncinfer.bench.peers.peer import CEILING, OURS, OURS_HTTP, PEERS, Peer
from asyncinfer.bench.peers.plan import IN_FLIGHT, Plan, Session, prepare
from asyncinfer.bench.peers.running import PeerFailed, started
from asyncinfer.bench.record import Outcome
from asyncinfer.bench.suite import Context
from asyncinfer.errors import ConfigError

__all__ = ("main", "run")


def run(context: Context) -> Outcome:
    """Measure what is installed, in turns."""
    begun, outcome = time.perf_counter(), Outcome("peers")
    peers = _installed(context, outcome)
    if OURS in peers:
        run_async(_measure(context, _plan(context, peers), peers, outcome))
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _plan(context: Context, peers: Sequence[Peer]) -> Plan:
    """One round is enough where there is nothing to compare asyncinfer with."""
    rounds = context.runs if set(peers) & set(PEERS) else 1
    if context.short:
        return Plan(("digits",), 1, 0.3, 0.5, 0.0, 0.3, budget=5, seed=context.seed)
    models = ("digits", "lite0")
    return Plan(models, rounds, 0.7, 1.5, 1.5, 1.2, budget=400, seed=context.seed)


def _installed(context: Context, outcome: Outcome) -> list[Peer]:
    """The peers that can be measured; for each of the others a line in ``outcome.skipped``."""
    found = []
    for peer in (OURS, OURS_HTTP, *PEERS):
        if os.name != "posix":
            outcome.skipped.append(f"{peer.name}: measured on Linux and macOS only")
        elif problem := missing(peer):
            outcome.skipped.append(problem)
        elif context.short and not peer.fast:
            outcome.skipped.append(f"{peer.name}: starts too slowly for the short form")
        else:
            found.append(peer)
    return found


async def _measure(context: Context, plan: Plan, peers: Sequence[Peer], outcome: Outcome) -> None:
    session = Session(plan, peers, context.progress)
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as temporary:
        folders = {model: Path(temporary, model) for model in plan.models}
        try:
            for model, folder in folders.items():
                context.progress(f"{model}: writing the model and its images")
                folder.mkdir()
                await prepare(model, folder, workers=2)
            ceiling = await _ceiling(folders[plan.models[0]], plan)
            await session.run(folders)
        except PeerFailed as error:
            outcome.skipped.append(str(error))
            return
    outcome.skipped += session.skipped
    outcome.runs = report.rows(session.measured, context.seed)
    outcome.tables = report.tables(session.measured, peers, ceiling)
    outcome.plots = report.plots(session.measured)
    outcome.checks = [] if context.short else report.checks(session.measured, peers)


async def _ceiling(folder: Path, plan: Plan) -> str:
    """What the client itself can do, for people."""
    async with started(CEILING, folder) as running:
        load = await running.closed_loop(in_flight=IN_FLIGHT, seconds=plan.warm_up)
    return f"The HTTP client makes {rate(load.throughput)} requests/s of a server without a model."


def main(names: Sequence[str]) -> int:
    """Make the environments of these names, or all."""
    try:
        install(names, print)
    except ConfigError as error:
        print(f"asyncinfer.bench.peers: {error}", file=sys.stderr)
        return 1
    return 0
