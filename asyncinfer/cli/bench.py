"""``asyncinfer bench``: what the dispatcher gains, on made-up, emulated and real devices."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from asyncinfer import config as configuration
from asyncinfer.bench import rows
from asyncinfer.bench.machine import machine, threads, versions
from asyncinfer.bench.record import Check, Outcome
from asyncinfer.bench.report import FORMATS, check_pictures, save_plots, write_report
from asyncinfer.bench.session import chosen, measure
from asyncinfer.bench.suite import SUITES, Context
from asyncinfer.cli.arguments import AllowCode, Config, Json
from asyncinfer.cli.output import emit, fail, note, people, seconds, table
from asyncinfer.cli.tools import read_config
from asyncinfer.errors import ConfigError

__all__ = ("bench",)


def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(help=f"One or more of: {', '.join(SUITES)}, all. Default: paper."),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            help="One or more names, as for run. Default: the config's, or the suite's own.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    allow_code: AllowCode = False,
    runs: Annotated[int, typer.Option(min=1, help="Repeats of what is timed.")] = 5,
    seed: Annotated[int, typer.Option(help="Of noise and arrivals.")] = 42,
    short: Annotated[bool, typer.Option("--short", help="A few cases, in seconds.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write one row a run to this .csv file.", show_default=False),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Save the plots in this folder.", show_default=False)
    ] = None,
    plot_format: Annotated[str, typer.Option(help=f"{' or '.join(FORMATS)}.")] = "svg",
    report: Annotated[
        Path | None,
        typer.Option(help="Write tables, checks and plots to this .md file.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what the dispatcher gains.

    Policies and rivals are compared side by side, and the figures are checked.

    asyncinfer bench --devices mac_studio raspberry_pi cortex_m4 --runs 5 --output async_results.csv

    The exit status is 1 if a suite fails or a claim of ours does not hold. With --short, claims
    about real time are shown and not insisted on.
    """
    names = chosen(suite or ["paper"])
    settings = read_config(config, allow_code=allow_code)
    configuration.select(devices or [], settings)
    _check_files(output, plots, plot_format, report)
    context = Context(devices or (), settings, runs, seed, short)
    facts = _facts(names, context)
    outcomes: list[Outcome] = []
    with rows.opened(output) as write, Progress() as progress:
        for outcome in measure(names, context, progress):
            write(outcome.runs)
            outcomes.append(outcome)
            progress.clear()
            _tell(outcome, shown=not as_json)
    facts |= {"threads": threads(), "met": all(outcome.met for outcome in outcomes)}
    folder = plots or (report and report.parent / f"{report.stem}-plots")
    pictures = save_plots(outcomes, folder, plot_format) if folder else {}
    if report:
        write_report(report, facts, outcomes, pictures)
    if as_json:
        emit(facts | {"suites": [_suite(outcome) for outcome in outcomes]})
    if not facts["met"]:
        raise typer.Exit(1)


def _check_files(
    output: Path | None, plots: Path | None, plot_format: str, report: Path | None
) -> None:
    """Refuse what could not be written, before anything is measured."""
    for option, path, suffix in (("--output", output, ".csv"), ("--report", report, ".md")):
        if path and path.suffix.lower() != suffix:
            raise ConfigError(f"{option} {path}: its suffix must be {suffix}")
    for path in filter(None, (output, plots, report)):
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: no such folder: {path.parent}")
    if plots or report:
        check_pictures(plot_format)


def _facts(names: Sequence[str], context: Context) -> dict[str, Any]:
    """What was asked for, and on what it runs."""
    words = ["asyncinfer", "bench", "--suite", *names]
    if context.devices:
        words += ["--devices", *context.devices]
    words += ["--runs", str(context.runs), "--seed", str(context.seed)]
    return {
        "command": shlex.join([*words, *(["--short"] if context.short else [])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "runs": context.runs,
        "seed": context.seed,
        "short": context.short,
    }


def _suite(outcome: Outcome) -> dict[str, Any]:
    """One suite's part of the JSON object."""
    return {
        **{key: value for key, value in vars(outcome).items() if key != "plots"},
        "met": outcome.met,
        "plots": [plot.name for plot in outcome.plots],
    }


class Progress:
    """One line on standard error that changes on a terminal, one line a step elsewhere."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *unused: object) -> None:
        self.clear()

    def __call__(self, suite: str, text: str) -> None:
        """Say what ``suite`` is doing."""
        line = f"{suite}: {text}"
        if not sys.stderr.isatty():
            note(line)
            return
        if self._status is None:
            self._status = Status(line, console=Console(stderr=True))
            self._status.start()
        self._status.update(line)

    def clear(self) -> None:
        """Leave the terminal to others."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def _tell(outcome: Outcome, *, shown: bool) -> None:
    """What a suite brought: for people if ``shown``, its error in any case."""
    if shown:
        _show(outcome)
    if outcome.error:
        fail(f"suite {outcome.suite}: {outcome.error}")


def _show(outcome: Outcome) -> None:
    screen = people()
    wide = Console(highlight=False, soft_wrap=True, width=1000)  # no cell is cut
    screen.print(f"\n{outcome.suite}  ({seconds(outcome.seconds)})", style="bold", markup=False)
    for each in outcome.tables:
        screen.print()
        screen.print(each.title, style="italic", markup=False)
        wide.print(table(each.columns, each.rows))
        if each.note:
            screen.print(each.note, style="dim", markup=False)
    screen.print()
    for check in outcome.checks:
        screen.print(_line(check), style=_style(check), markup=False)
    if outcome.glimpse and not all(check.met for check in outcome.checks):
        screen.print("in the short form this counts as no failure", style="yellow")
    for line in outcome.skipped:
        screen.print(f"skipped: {line}", style="yellow", markup=False)


def _line(check: Check) -> str:
    whose = "quoted claim: " if check.quoted else ""
    why = f" ({check.why})" if check.why else ""
    return f"{'met    ' if check.met else 'NOT MET'}  {whose}{check.claim}: {check.measured}{why}"


def _style(check: Check) -> str:
    return "green" if check.met else "yellow" if check.quoted else "red"
