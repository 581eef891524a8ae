"""``asyncinfer firmware emulate`` and ``flash``: a firmware in QEMU, or on a real board."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asyncinfer.cli.arguments import Json
from asyncinfer.cli.output import emit, note
from asyncinfer.cli.tools import run_async
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.registry import needed_for

if TYPE_CHECKING:
    from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4

__all__ = ("emulate", "flash")

#: where an STM32's flash begins
FLASH = "0x08000000"
#: each tool, in the order of preference, with the suffix it takes and its arguments
TOOLS: dict[str, tuple[str, Sequence[str]]] = {
    "st-flash": (".bin", ("--reset", "write", "{file}", FLASH)),
    "openocd": (
        ".elf",
        (
            *("-f", "interface/stlink.cfg", "-f", "target/stm32f4x.cfg"),
            *("-c", 'program "{file}" verify reset exit'),
        ),
    ),
    "dfu-util": (".bin", ("-a", "0", "-s", f"{FLASH}:leave", "-D", "{file}")),
}
_PACKAGES = "apt-get install stlink-tools, openocd or dfu-util"

Board = Annotated[str, typer.Option(help="The board the firmware was built for.")]


def emulate(
    firmware: Annotated[
        Path | None, typer.Argument(metavar="[ELF]", help="Default: digits, built if need be.")
    ] = None,
    board: Board = "stm32f405",
    baudrate: Annotated[
        int | None, typer.Option(min=1, help="Pace the line.", show_default=False)
    ] = None,
    faults: Annotated[
        float, typer.Option(min=0, max=1, help="Share of bytes flipped, dropped or doubled.")
    ] = 0.0,
    icount: Annotated[
        int | None,
        typer.Option(min=0, max=10, help="Each instruction takes 2^N ns.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a firmware in QEMU, with its serial port, until Ctrl-C.

    Results are those of the real board. Times are not: they are this host's.
    """
    with needed_for("the emulated board"):
        from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
        from asyncinfer_drivers.cortex_m.proxy import Faults
    line = Faults.mixed(faults) if faults else None
    elf = firmware or _digits(board)
    running = EmulatedCortexM4(elf, board=board, baudrate=baudrate, faults=line, icount=icount)
    run_async(_emulate(running, as_json))


async def _emulate(board: EmulatedCortexM4, as_json: bool) -> None:
    async with board:
        if as_json:
            emit({"port": board.port, "board": board.board, "elf": board.elf, "emulated": True})
        else:
            print(board.port, flush=True)
            note(
                f'emulated {board.board}: CortexM4Driver("{board.port}") speaks to it; Ctrl-C ends'
            )
        await board.wait()
    raise AsyncInferError(f"the emulated {board.board} has ended by itself")


def _digits(board: str) -> Path:
    """The firmware of the digits model, built on first use."""
    with needed_for("building a firmware"):
        from asyncinfer_drivers.cortex_m.build import build_firmware
    return build_firmware("digits", "digits", board=board).elf


def flash(
    firmware: Annotated[Path, typer.Argument(help="The .elf or .bin of firmware build.")],
    board: Board = "stm32f405",
    tool: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(TOOLS)}; default: found.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
) -> None:
    """Write a firmware to a real board, with the tool that is installed."""
    if not board.startswith("stm32f4"):
        raise ConfigError(f"no way known to flash a {board}; its vendor's tool takes the .elf")
    command = _command(firmware, tool or _found(required=not dry_run), board)
    note(shlex.join(command))
    if dry_run:
        return
    try:
        status = subprocess.run(command, check=False).returncode  # noqa: S603  # what the user asked for
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]} is not installed: {_PACKAGES}") from error
    if status:
        raise AsyncInferError(f"{command[0]} failed with status {status}")


def _found(required: bool) -> str:
    found = next((tool for tool in TOOLS if shutil.which(tool)), None)
    if found is None and required:
        raise ConfigError(f"flashing needs {', '.join(TOOLS)}, none is here: {_PACKAGES}")
    return found or next(iter(TOOLS))


def _command(firmware: Path, tool: str, board: str) -> list[str]:
    """The command line; the file beside ``firmware`` if the tool takes the other kind."""
    if tool not in TOOLS:
        raise ConfigError(f"unknown tool {tool!r}; known: {', '.join(TOOLS)}")
    suffix, arguments = TOOLS[tool]
    file = firmware.with_suffix(suffix)
    if not file.is_file():
        raise ConfigError(f"no such firmware: {file} ({tool} takes a {suffix})")
    with needed_for("flashing"):
        from asyncinfer_drivers.cortex_m.image import check_image
    check_image(file, board)
    name = file.as_posix()
    name = _tcl(name) if tool == "openocd" else name if not name.startswith("-") else f"./{name}"
    return [tool, *(argument.replace("{file}", name) for argument in arguments)]


def _tcl(name: str) -> str:
    """A file's name between openocd's quotes; openocd then puts it between braces."""
    if any(character in name for character in "{}\n"):
        raise ConfigError(
            f"openocd takes no braces in a file's name: copy {name} elsewhere, or --tool st-flash"
        )
    return re.sub(r'([\\"$\[\]])', r"\\\1", name)
