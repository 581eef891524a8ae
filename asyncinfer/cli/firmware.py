"""``asyncinfer firmware``: build a microcontroller's program, emulate it, flash it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncinfer.cli import firmware_board
from asyncinfer.cli.arguments import Json
from asyncinfer.cli.output import emit, people, table
from asyncinfer.cli.steps import Steps
from asyncinfer.registry import needed_for

if TYPE_CHECKING:
    from rich.table import Table

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
    board: Annotated[
        str, typer.Option("--board", help="stm32f405, mps2_an386 or nucleo_l4r5zi.")
    ] = "stm32f405",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="A folder for the files. Default: the cache.", show_default=False
        ),
    ] = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="For QEMU: without the board's second memory.")
    ] = False,
    define: Annotated[
        list[str] | None,
        typer.Option("--define", help="A macro, AI_BAUD=115200u.", show_default=False),
    ] = None,
    min_snr: Annotated[
        float | None,
        typer.Option(
            "--min-snr",
            metavar="DB",
            help="Refuse a build with less signal to noise against float.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Say what each layer loses against float.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to INT8 and build a firmware around it, with CMSIS-NN kernels.

    asyncinfer firmware build --model digits --calibration digits --output out/firmware
    """
    with needed_for("building a firmware"):
        from asyncinfer_drivers.cortex_m.build import build_firmware
    with Steps() as steps:
        made = build_firmware(
            model,
            calibration or model,
            board=board,
            output=output,
            emulated=emulated,
            defines=define or (),
            min_snr=min_snr,
            progress=steps,
        )
    facts = {"elf": str(made.elf), "bin": str(made.bin), **made.facts()}
    if as_json:
        emit(facts)
        return
    for name, text in _rows(facts):
        people().print(f"{name:<18}{text}")
    if layers:
        people().print(_layers(facts["precision"]["layers"]))


def _layers(layers: Iterable[Mapping[str, Any]]) -> Table:
    rows = (
        (
            layer["name"],
            f"{layer['snr_db']:.1f}",
            f"{layer['lost_db']:.1f}",
            f"{layer['worst_error']:.3g}",
        )
        for layer in layers
    )
    return table(("layer", "signal to noise, dB", "lost, dB", "worst error"), rows)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in facts.items():
        if name == "precision":
            rows += _precision(value)
            continue
        if name == "kernels":
            text = ", ".join(value) or "none"
        elif name in ("in_ccm", "on_host"):
            text = ", ".join(value) or "nothing"
        elif name.endswith("_accuracy"):
            text = _share(value)
        else:
            text = f"{value:,} B" if name.endswith("_bytes") else str(value)
        rows.append((name.replace("_", " "), text))
    return rows


def _precision(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    variation = facts["variation_db"]
    return [
        ("signal to noise", f"{facts['snr_db']:.1f} dB on {facts['samples']} inputs"),
        ("variation", "none" if variation is None else f"{variation:.1f} dB"),
        ("worst error", f"{facts['worst_error']:.3g}"),
        ("argmax agreement", _share(facts["argmax_agreement"])),
    ]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"


for _command in (firmware_board.emulate, firmware_board.flash):
    app.command()(_command)
