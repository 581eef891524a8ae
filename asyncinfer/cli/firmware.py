"""``asyncinfer firmware``: build a microcontroller's program, emulate it, flash it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asyncinfer.cli import firmware_board
from asyncinfer.cli.arguments import Json
from asyncinfer.cli.output import emit, people
from asyncinfer.registry import needed_for

__all__ = ("app",)

app = typer.Typer(
    name="firmware",
    help="Build the firmware of a Cortex-M4, emulate it, flash it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def build(
    model: Annotated[
        str, typer.Option("--model", help="A built-in model, a .pt2 file, or module:factory.")
    ] = "digits",
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="A .npy file of inputs [n, ...], or a built-in model's name. Default: the model.",
            show_default=False,
        ),
    ] = None,
    board: Annotated[str, typer.Option("--board", help="stm32f405 or mps2_an386.")] = "stm32f405",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="A folder for the files. Default: the cache.", show_default=False
        ),
    ] = None,
    define: Annotated[
        list[str] | None,
        typer.Option("--define", help="A macro, AI_BAUD=115200u.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize a model to INT8 and build a firmware around it, with CMSIS-NN kernels.

    asyncinfer firmware build --model digits --calibration digits --output out/firmware
    """
    with needed_for("building a firmware"):
        from asyncinfer_drivers.cortex_m.build import build_firmware
    made = build_firmware(
        model, calibration or model, board=board, output=output, defines=define or ()
    )
    facts = {"elf": str(made.elf), "bin": str(made.bin), **made.facts()}
    if as_json:
        emit(facts)
    else:
        for name, text in _rows(facts):
            people().print(f"{name:<18}{text}")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in facts.items():
        if name == "kernels":
            text = ", ".join(value) or "none"
        elif name.endswith("_accuracy"):
            text = "unknown" if value is None else f"{value:.2%}"
        else:
            text = f"{value:,} B" if name.endswith("_bytes") else str(value)
        rows.append((name.replace("_", " "), text))
    return rows


for _command in (firmware_board.emulate, firmware_board.flash):
    app.command()(_command)
