"""The report of a benchmark: tables, checks and plots in one Markdown document."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncinfer._text import seconds, size
from asyncinfer.bench.record import Check, Outcome, Plot, Table
from asyncinfer.errors import ConfigError
from asyncinfer.registry import optional

__all__ = ("FORMATS", "check_pictures", "save_plots", "write_report")

#: what plots can be saved as
FORMATS = ("svg", "png")
#: the same figures give the same file
_STABLE = {"svg.hashsalt": "asyncinfer", "svg.fonttype": "none"}


def check_pictures(kind: str) -> None:
    """Refuse plots that could not be saved. Raises ``ConfigError``."""
    if kind not in FORMATS:
        raise ConfigError(f"unknown plot format {kind!r}: choose one of {', '.join(FORMATS)}")
    optional("matplotlib.figure", "a plot")


def save_plots(
    outcomes: Iterable[Outcome], folder: Path, kind: str = "svg"
) -> dict[tuple[str, str], Path]:
    """Save all plots in ``folder``; the files by suite and name of the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    saved: dict[tuple[str, str], Path] = {}
    for outcome in outcomes:
        for plot in outcome.plots:
            path = folder / f"{outcome.suite}-{plot.name}.{kind}"
            _save(plot, path)
            saved[outcome.suite, plot.name] = path
    return saved


def _save(plot: Plot, path: Path) -> None:
    matplotlib = optional("matplotlib", "a plot")
    figure_class = optional("matplotlib.figure", "a plot").Figure
    with matplotlib.rc_context(_STABLE):
        figure = figure_class(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        plot.draw(axes)
        axes.set_title(plot.title, loc="left", fontsize=11)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=120, metadata=metadata)


def write_report(
    path: Path,
    facts: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    pictures: Mapping[tuple[str, str], Path],
) -> None:
    """Write the document; its links to ``pictures`` are relative to it."""
    links = {
        key: Path(os.path.relpath(file, path.parent)).as_posix() for key, file in pictures.items()
    }
    blocks = [*_head(facts), *_overview(outcomes)]
    for outcome in outcomes:
        blocks += _suite(outcome, links)
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "# Benchmark report"
    yield f"    {facts['command']}"
    machine, threads = facts["machine"], facts["threads"]
    load = ", ".join(f"{value:.2f}" for value in machine["load_average"] or ())
    memory = machine["memory_bytes"]
    lines = {
        "date": facts["date"],
        "CPU": f"{machine['cpu']}, {machine['cores']} cores ({machine['usable_cores']} usable)",
        "memory": size(memory) if memory else "-",
        "system": machine["system"],
        "load average at start": load or "-",
        "versions": ", ".join(f"{k} {v or 'not installed'}" for k, v in facts["versions"].items()),
        "threads": ", ".join(f"{k} {v if v is not None else '-'}" for k, v in threads.items()),
        "seed": facts["seed"],
        "repeats": facts["runs"],
    }
    yield _table(("", ""), [(key, str(value)) for key, value in lines.items()])


def _overview(outcomes: Sequence[Outcome]) -> Iterator[str]:
    rows = []
    for outcome in outcomes:
        own = [check for check in outcome.checks if not check.quoted]
        met = f"{sum(check.met for check in own)} of {len(own)}"
        rows.append((outcome.suite, seconds(outcome.seconds), met, outcome.error or "-"))
    yield _table(("suite", "took", "checks met", "error"), rows)


def _suite(outcome: Outcome, links: Mapping[tuple[str, str], str]) -> Iterator[str]:
    yield f"## {outcome.suite}"
    if outcome.error:
        yield f"Failed: {outcome.error}"
    if outcome.checks:
        yield _checks(outcome.checks)
    if outcome.skipped:
        yield "\n".join(f"- skipped: {line}" for line in outcome.skipped)
    for table in outcome.tables:
        yield from _titled(table)
    for plot in outcome.plots:
        link = links.get((outcome.suite, plot.name))
        if link:
            yield f"![{plot.title}]({link})"
            if plot.note:
                yield plot.note


def _titled(table: Table) -> Iterator[str]:
    yield f"### {table.title}"
    yield _table(table.columns, table.rows)
    if table.note:
        yield table.note


def _checks(checks: Iterable[Check]) -> str:
    rows = [
        (
            check.claim,
            check.measured,
            "met" if check.met else "**not met**",
            f"{'quoted; ' if check.quoted else ''}{check.why}".rstrip("; "),
        )
        for check in checks
    ]
    return _table(("claim", "measured", "", "remark"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_line(columns), "|---" * len(columns) + "|", *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"
