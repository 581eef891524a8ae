"""``asyncinfer demo``: real models, real pictures, unequal devices of this host."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from asyncinfer.bench.real.devices import close_all, open_all
from asyncinfer.cli.arguments import Json
from asyncinfer.cli.demo_board import board_stage, show_board
from asyncinfer.cli.demo_stage import Stage, middle
from asyncinfer.cli.demo_summary import show, summary
from asyncinfer.cli.demo_turns import Show, measure
from asyncinfer.cli.output import emit, note, rate
from asyncinfer.cli.timeline import check_picture, picture
from asyncinfer.cli.tools import optional, run_async
from asyncinfer.errors import AsyncInferError

__all__ = ("demo",)

#: what must not be false of the microcontroller
_TRUE = ("in_order", "host_exact", "bit_exact")


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="How often the pictures are shown.")] = 6,
    output: Annotated[Path, typer.Option(help="Where the timeline is saved.")] = Path(
        "asyncinfer-demo.png"
    ),
    as_json: Json = False,
) -> None:
    """Classify real pictures on this host's devices.

    Pictures and handwritten digits (PNG files), on three unequal devices. Every figure is measured
    in this run: all together work until it is found which of them do most, then each device alone
    and all together take turns on the same inputs. Results are compared with a plain loop over the
    model. Digits also run on an emulated Cortex-M4, if its tools are here. Takes about a minute.
    """
    check_picture(output)
    with TemporaryDirectory(prefix="asyncinfer-demo-") as folder:
        stages = [
            Stage.of("pictures", "efficientnet_lite0", rounds),
            Stage.of("digits", "digits", ceil(rounds / 2), Path(folder)),
        ]
        for stage in stages:
            _run(stage, as_json)
        picture(output, {stage.heading: middle(stage.together).timeline for stage in stages})
        board = board_stage(stages[-1])
    facts = summary(stages) | {"timeline": str(output), "cortex_m4": board}
    facts["in_order"] = facts["in_order"] and all(board.get(key) is not False for key in _TRUE)
    if as_json:
        emit(facts)
    else:
        show_board(board)
        show(facts)
    if not facts["in_order"]:
        raise AsyncInferError("results differ from those of a plain loop, or came out of order")


def _run(stage: Stage, quiet: bool) -> None:
    """Measure a stage."""
    note(f"{stage.heading}: a plain loop over the model, then each device alone and all together")
    stage.expected = _plain_loop(stage)
    note("  finding out which devices do most together")
    run_async(_measure(stage, quiet))
    for device in stage.devices:
        note(f"  {device.name} alone: {rate(middle(stage.alone[device.name]).rate)} tasks/s")
    note(f"  together: {rate(middle(stage.together).rate)} tasks/s")


async def _measure(stage: Stage, quiet: bool) -> None:
    opened, failed = await open_all(stage.devices, stage.model)
    try:
        if failed:
            raise AsyncInferError("; ".join(failed))
        await measure(stage, opened, None if quiet else _printer(stage))
    finally:
        await close_all(opened)


def _plain_loop(stage: Stage) -> list[Any]:
    """What the model returns without any of this project: one input after another."""
    torch, model = optional("torch", "the demo"), stage.model
    assert model.builtin is not None  # noqa: S101  # stages have built-in models
    before, after, module = model.builtin.preprocess, model.builtin.postprocess, model.loaded
    with torch.inference_mode():
        outputs = [after(module(before(x)[None])[0]) for x in stage.items[: stage.distinct]]
    return outputs * stage.rounds


def _printer(stage: Stage) -> Show:
    """Prints results in order as they arrive: a line for each picture, 60 digits in a line."""
    line: list[str] = []

    def print_one(index: int, value: Any) -> None:
        if stage.targets is None:
            print(f"  {stage.names[index]:<16} {value}", flush=True)
            return
        line.append(str(value))
        if len(line) == 60 or index + 1 == stage.distinct:
            print(f"  {''.join(line)}", flush=True)
            line.clear()

    return print_one
