"""The suite ``link``: the line to a Cortex-M4, of what it can carry.

The board is emulated in QEMU, and a proxy of ours paces its bytes as a line of that speed would.
A board that the config describes is measured on its own line as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from asyncinfer._text import rate, seconds
from asyncinfer.bench.link.board import computing, firmware, protocol, round_trips
from asyncinfer.bench.link.lines import EMULATED, Line, stream
from asyncinfer.bench.measure import median_spread
from asyncinfer.bench.overhead.trials import in_turns
from asyncinfer.bench.record import Check, Outcome, Run, Table
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig, select
from asyncinfer.errors import AsyncInferError

__all__ = ("checks", "run")

_BAUD = 115_200
_RATES: tuple[int | None, ...] = (_BAUD, 230_400, 921_600, None)
_IN_FLIGHT = (1, 4)
#: what is demanded of the line at ``_BAUD``, or of the board if it takes less; and of a round trip
LEAST_SHARE, MOST_TRIP = 0.95, 1.2
#: rounds at most, of what a claim is about and of the rest
_ROUNDS, _FEW_ROUNDS = 3, 2
#: inferences in a round of either
_INFERENCES, _FEW_INFERENCES = 320, 80

_BUSY = "the host's cores were busy, or the link is slow: see the spread"

_EMULATED = (
    "Emulated: the board's own firmware in QEMU, its baud rate paced by a proxy of ours; QEMU "
    "itself takes in no more than some 25-45 kB/s. 'stream' is Dispatcher.stream, one sample a "
    "request, quantising included; 'wire protocol' is the link below it alone. The share is that "
    "of the requests' bytes in what the line carries. What the board allows: the same frames on "
    "the same line without the link, in turns of eight; the median of neighbouring turns counts."
)
_REAL = "The boards of the config, on their own lines. The share is as above."
_TRIP = (
    "75 bytes to the emulated board and back. Bare: nothing but the bytes; the link adds framing, "
    "credit and timers. Computing: the part of the time in which the board computes when its model "
    "is slower than its line; its clock counts instructions."
)


def run(context: Context) -> Outcome:
    """Measure the line; about two minutes, the short form some seconds."""
    start = time.perf_counter()
    outcome = Outcome("link")
    try:
        elf = firmware()
    except AsyncInferError as error:
        outcome.skipped.append(f"the emulated Cortex-M4: {error}")
    else:
        _emulated(elf, context, outcome)
    _boards(context, outcome)
    outcome.checks += checks(outcome.runs)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _emulated(elf: str, context: Context, outcome: Outcome) -> None:
    rates = (_BAUD,) if context.short else _RATES
    cases = _streams(
        (
            DeviceConfig(EMULATED, "cortex_m4", {"elf": elf, "baudrate": b, "compare": False})
            for b in rates
        ),
        context,
    )
    for baud in rates:
        if baud is not None and baud != _BAUD:
            cases[f"wire protocol, {baud} baud"] = partial(protocol, elf, baud, _FEW_INFERENCES)
    claimed = partial(protocol, elf, _BAUD, 48 if context.short else _INFERENCES)
    runs = _measured({f"wire protocol, {_BAUD} baud": claimed}, context, _ROUNDS)
    runs += _measured(cases, context, _FEW_ROUNDS)
    outcome.tables.append(_lines("The line of an emulated Cortex-M4", runs, _EMULATED))
    context.progress("round trips")
    trips = round_trips(elf, 50 if context.short else 600)
    busy = [] if context.short else [computing()]
    outcome.runs += [*runs, trips, *busy]
    outcome.tables.append(_others(trips, *busy))


def _boards(context: Context, outcome: Outcome) -> None:
    """What the config describes of boards, or those of them that were asked for."""
    chosen = [d for d in select(context.devices, context.config) if d.driver == "cortex_m4"]
    if not chosen:
        return
    try:
        runs = _measured(_streams(chosen, context), context, _ROUNDS)
    except AsyncInferError as error:
        outcome.skipped.append(f"boards of the config: {error}")
        return
    outcome.runs += runs
    outcome.tables.append(_lines("The lines of real boards", runs, _REAL))


def _streams(devices: Iterable[DeviceConfig], context: Context) -> dict[str, Callable[[], Run]]:
    took = 0.3 if context.short else 1.0
    lines = [Line(device, in_flight) for device in devices for in_flight in _IN_FLIGHT]
    return {f"stream, {line.name}": partial(stream, line, took, context) for line in lines}


def _measured(cases: Mapping[str, Callable[[], Run]], context: Context, most: int) -> list[Run]:
    def told(name: str) -> Run:
        context.progress(name)
        return cases[name]()

    rounds = 1 if context.short else min(context.runs, most)
    measured = in_turns({name: partial(told, name) for name in cases}, rounds, warm_up=0)
    return [
        replace(run, run=number) for runs in measured.values() for number, run in enumerate(runs, 1)
    ]


def checks(runs: Sequence[Run]) -> list[Check]:
    """What is demanded of the link; nothing of what was not measured."""
    claimed = [
        run
        for run in runs
        if run.policy == "wire protocol"
        and (run.figures.get("baudrate"), run.figures.get("in_flight")) == (_BAUD, 4)
    ]
    found = [_line_check(claimed)] if claimed else []
    for run in runs:
        if trips := run.figures.get("overhead"):
            claim = f"emulated Cortex-M4: a round trip <= {MOST_TRIP} x the bare bytes'"
            why = "" if trips <= MOST_TRIP else _BUSY
            found.append(Check(claim, f"{trips:.2f} x", trips <= MOST_TRIP, why))
    return found


def _line_check(runs: Sequence[Run]) -> Check:
    """Of the lesser of what the line and the board allow: QEMU may be slower than the line."""
    share = median_spread(turn for run in runs for turn in run.figures["turns"]).median
    line = median_spread(run.figures["line_share"] for run in runs).median
    board = median_spread(run.figures["bare_efficiency"] for run in runs).median
    limit = "line" if board >= LEAST_SHARE else "board"
    return Check(
        f"emulated Cortex-M4: >= {LEAST_SHARE:.0%} of what the line at {_BAUD} baud or the board "
        "itself allows, 4 in flight",
        f"{share:.1%} of what the {limit} allows; {line:.1%} of the line",
        share >= LEAST_SHARE,
        "" if share >= LEAST_SHARE else _BUSY,
    )


def _lines(title: str, runs: Sequence[Run], note: str) -> Table:
    columns = ("", "", "inferences/s", "bytes/s", "share of the line")
    rows: list[tuple[str, ...]] = []
    for case, policy in dict.fromkeys((run.case, run.policy) for run in runs):
        chosen = [run for run in runs if (run.case, run.policy) == (case, policy)]
        found = median_spread(run.throughput for run in chosen)
        share = median_spread(run.figures["line_share"] for run in chosen).median
        cells = (
            f"{rate(found.median)} ({rate(found.least)}-{rate(found.most)})",
            rate(median_spread(run.figures["bytes_per_second"] for run in chosen).median),
            f"{share:.1%}" if share == share else "-",
        )
        rows.append((case, policy, *cells))
    return Table(title, columns, sorted(rows, key=lambda row: row[1]), note)


def _others(trips: Run, busy: Run | None = None) -> Table:
    facts = trips.figures
    rows = [
        ("bare echo", seconds(facts["bare_echo_seconds"])),
        ("through the link", f"{seconds(facts['link_seconds'])} x{facts['overhead']:.2f}"),
    ]
    if busy is not None:
        rows.append(("computing, with a slow model", f"{busy.utilisation_mean:.1%} of the time"))
    return Table("Round trips to the emulated Cortex-M4", ("", "median"), rows, _TRIP)
