"""The ``asyncinfer`` program: its commands, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.main import get_command

from asyncinfer.cli.arguments import expand
from asyncinfer.cli.bench import bench
from asyncinfer.cli.demo import demo
from asyncinfer.cli.devices import devices
from asyncinfer.cli.firmware import app as firmware
from asyncinfer.cli.output import fail
from asyncinfer.cli.run import run
from asyncinfer.cli.serve import serve
from asyncinfer.cli.simulate import simulate
from asyncinfer.errors import AsyncInferError, ConfigError

__all__ = ("app", "main")

#: what the parser raises for a wrong command line, whichever parser typer was built on
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="asyncinfer",
    help="One ordered stream of inference over every device at hand.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command in (demo, run, bench, devices, serve, simulate):
    app.command()(_command)
app.add_typer(firmware)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"asyncinfer {version('asyncinfer')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass  # --debug is taken out by main, so that it works in any place


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 success, 1 failure, 2 wrong request, 130 interrupted."""
    arguments = expand(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug = "--debug" in arguments
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:  # the reader of our output has gone
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted")
        return 130
    except Exception as error:
        if _came_of_an_interrupt(error):
            fail("interrupted")
            return 130
        if debug:
            raise
        return _explain(error, arguments)


def _run(arguments: list[str]) -> int:
    status = get_command(app).main(arguments, prog_name="asyncinfer", standalone_mode=False)
    return status if isinstance(status, int) else 0


def _came_of_an_interrupt(error: BaseException) -> bool:
    """Ctrl-C while a loop starts or ends can leave one that cannot be closed, which raises."""
    while (before := error.__cause__ or error.__context__) is not None:
        if isinstance(before, KeyboardInterrupt):
            return True
        error = before
    return False


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """Print what to do about ``error`` on one line; return the exit status."""
    if isinstance(error, _UsageError):
        names = [info.callback.__name__ for info in app.registered_commands if info.callback]
        names += [str(group.name) for group in app.registered_groups]
        command = f" {arguments[0]}" if arguments[0] in names else ""
        message = getattr(error, "format_message", error.__str__)()
        fail(f"{message.rstrip('.')}; see asyncinfer{command} --help")
        return 2
    if isinstance(error, AsyncInferError | OSError):
        fail(str(error) or type(error).__name__)
        return 2 if isinstance(error, ConfigError) else 1
    fail(f"{type(error).__name__}: {error}; --debug shows where")
    return 1
