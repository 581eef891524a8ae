"""``asyncinfer run``: a stream of inputs through a model on several devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from asyncinfer import config as configuration
from asyncinfer.cli.arguments import AllowCode, Config, Devices, Json, Policy, WaitFor, Window
from asyncinfer.cli.arguments import Model as ModelOption
from asyncinfer.cli.durable import resumed
from asyncinfer.cli.inputs import Inputs, collect, read_picture
from asyncinfer.cli.output import emit, note, seconds, table
from asyncinfer.cli.progress import Progress
from asyncinfer.cli.rows import Write, opened
from asyncinfer.cli.session import Session
from asyncinfer.cli.tools import read_config, run_async
from asyncinfer.config import DeviceConfig
from asyncinfer.errors import ConfigError
from asyncinfer.model import Decoding, Model, resolve
from asyncinfer.registry import import_object

__all__ = ("run",)

Steps = Annotated[
    str | None, typer.Option(help="module:function, run in the worker thread.", show_default=False)
]


def run(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUTS]...", help="Files, globs, a .npy array, an input set, or -."
        ),
    ] = None,
    model: ModelOption = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--inputs", help="The same as INPUTS, as an option.", show_default=False),
    ] = None,
    devices: Devices = None,
    config: Config = None,
    allow_code: AllowCode = False,
    policy: Policy = None,
    window: Window = None,
    wait_for: WaitFor = None,
    preprocess: Steps = None,
    postprocess: Steps = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write rows to this .csv or .jsonl file.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the rows --output has, and add the others.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stream inputs through a model on several devices.

    Results are written in order as they come.

    asyncinfer run --model efficientnet_lite0 --devices cpu cpu -- photos/*.jpg

    A built-in model brings its own inputs. Without --output, rows go to standard output. Inputs
    that cannot be read become rows with an error, and the exit status 1. Ctrl-C ends the run with
    a summary of what was done. With --resume, the same command goes on where it was stopped.
    """
    settings = read_config(config, allow_code=allow_code)
    chosen = _select(devices or [], settings)
    if allow_code or any(text and ":" in text for text in (model, preprocess, postprocess)):
        _import_from_here()
    used = _model(model, chosen, preprocess, postprocess)
    source = collect([*(files or []), *(inputs or [])], used)
    given = {"policy": policy, "window": window, "wait_for": wait_for}
    options = dict(settings.dispatcher) | {k: v for k, v in given.items() if v is not None}
    drivers = [device.build(used) for device in chosen]
    _tell(chosen)
    with _written(output, source, resume=resume, quiet=as_json) as (source, write):
        beside_rows = not as_json and output is None and sys.stdout.isatty()
        progress = Progress(source.count, shown=not beside_rows)
        session = Session(drivers, options, source, write, progress)
        facts = run_async(session.run())
    facts["model"] = used.name if used else None
    emit(facts) if as_json else _show(facts)
    if facts["interrupted"]:
        raise typer.Exit(130)
    if facts["failed"] or facts.get("bit_exact") is False:
        raise typer.Exit(1)


@contextmanager
def _written(
    output: Path | None, source: Inputs, *, resume: bool, quiet: bool
) -> Iterator[tuple[Inputs, Write]]:
    """The inputs that are left to do, and where their rows go."""
    if not resume:
        with opened(output, quiet=quiet) as write:
            yield source, write
        return
    if output is None:
        raise ConfigError("--resume goes with --output FILE: the rows in it are kept")
    if source.lines:
        raise ConfigError("--resume needs inputs that stay the same: name files, not -")
    with resumed(output, (name for name, _ in source)) as kept:
        if kept.rows:
            note(f"{output}: {kept.rows} rows are there, {(source.count or 0) - kept.rows} to do")
        yield replace(source, skip=kept.rows), kept.write


def _select(names: Sequence[str], settings: configuration.Config) -> list[DeviceConfig]:
    try:
        return configuration.select(names, settings)
    except ConfigError as error:
        if any(Path(name).suffix and Path(name).exists() for name in names):
            hint = "put inputs before --devices, or after --"
            raise ConfigError(f"{error}; {hint}") from error
        raise


def _model(
    name: str | None,
    chosen: Sequence[DeviceConfig],
    preprocess: str | None,
    postprocess: str | None,
) -> Model | None:
    """The model all devices share, with the steps around it; file inputs always work."""
    name = name or next((device.model for device in chosen if device.model), None)
    if name is None:
        return None
    model = resolve(name)
    if preprocess:
        model = replace(model, preprocess=import_object(preprocess), collate=None)
    if postprocess:
        model = replace(model, postprocess=import_object(postprocess), uncollate=None)
    if isinstance(model.preprocess, Decoding):
        return model
    return replace(model, preprocess=Decoding(read_picture, model.preprocess))


def _import_from_here() -> None:
    """For ``module:function``; not otherwise, as what lies here may not be the user's own."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _tell(chosen: Sequence[DeviceConfig]) -> None:
    for device in chosen:
        if device.note:
            note(f"{device.name}: {device.note}")


def _show(facts: Mapping[str, Any]) -> None:
    """The summary, on standard error: standard output has the rows."""
    rows = [
        (
            device["name"],
            device["tasks"],
            f"{device['throughput']:.4g}",
            f"{device['utilisation']:.1%}",
            seconds(device["service_time"]),
        )
        for device in facts["devices"]
    ]
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    screen.print(table(("device", "tasks", "tasks/s", "utilisation", "service time"), rows))
    for device in facts["devices"]:
        if device["details"]:
            chosen = ", ".join(f"{name} {value}" for name, value in device["details"].items())
            screen.print(f"{device['name']}: {chosen}", markup=False)
    for name, told in facts["troubles"].items():
        screen.print(f"{name}: {told}", markup=False)
    for device in facts["devices"]:
        if device["rests"] is not None:
            screen.print(f"{device['name']} rests: {device['rests']}", markup=False)
    count, failed = facts["tasks"], facts["failed"]
    text = f"{count} tasks in {seconds(facts['seconds'])}: {facts['throughput']:.4g} tasks/s"
    if facts["accuracy"] is not None:
        text += f", {facts['accuracy']:.2%} right"
    if failed:
        text += f"; {failed} failed"
    if facts["interrupted"]:
        text += "; interrupted"
    screen.print(text, markup=False)
    if facts.get("flash_bytes") is not None:  # else there is no board, or its ELF was given
        exact = {True: "yes", False: "NO", None: "not compared"}[facts["bit_exact"]]
        kernels = ", ".join(facts["kernels"])
        screen.print(
            f"bit-exact to the integer reference: {exact}; flash {facts['flash_bytes']:,} B, "
            f"RAM {facts['ram_bytes']:,} B; {kernels}",
            markup=False,
        )
