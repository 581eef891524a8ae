"""``asyncinfer demo``: real models, real pictures, unequal devices of this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from asyncinfer.bench.real.devices import Opened, close_all, open_all
from asyncinfer.cli.arguments import Json
from asyncinfer.cli.demo_board import board_stage, show_board
from asyncinfer.cli.demo_stage import Outcome, Stage
from asyncinfer.cli.demo_summary import show, summary
from asyncinfer.cli.output import emit, note, rate
from asyncinfer.cli.timeline import Timeline, check_picture, picture
from asyncinfer.cli.tools import optional, run_async
from asyncinfer.config import DeviceConfig
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import AsyncInferError

__all__ = ("demo",)

#: passes over the inputs of each kind
PASSES = 2

#: what must not be false of the microcontroller
_TRUE = ("in_order", "host_exact", "bit_exact")

Show = Callable[[int, Any], None]


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="How often the pictures are shown.")] = 8,
    output: Annotated[Path, typer.Option(help="Where the timeline is saved.")] = Path(
        "asyncinfer-demo.png"
    ),
    as_json: Json = False,
) -> None:
    """Classify real pictures on this host's devices.

    Pictures and handwritten digits, on three unequal devices. Every figure is measured in this
    run: each device alone and all together, in turns, on the same inputs. Results are compared
    with a plain loop over the model. Digits also run on an emulated Cortex-M4, if its tools are
    here. Takes about half a minute.
    """
    check_picture(output)
    stages = [
        Stage.of("pictures", "efficientnet_lite0", rounds),
        Stage.of("digits", "digits", 1),
    ]
    for stage in stages:
        _run(stage, as_json)
    picture(output, {stage.heading: stage.together.timeline for stage in stages})
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
    """Measure a stage: passes alternate, and the fastest of each kind counts.

    Whatever else this host does meanwhile then meets all of them alike.
    """
    note(f"{stage.heading}: a plain loop over the model, then each device alone and all together")
    stage.expected = _plain_loop(stage)
    run_async(_measure(stage, quiet))
    for device in stage.devices:
        note(f"  {device.name} alone: {rate(stage.alone[device.name].rate)} tasks/s")
    note(f"  together: {rate(stage.together.rate)} tasks/s")


async def _measure(stage: Stage, quiet: bool) -> None:
    devices = stage.devices
    opened, failed = await open_all(devices, stage.model)
    try:
        if failed:
            raise AsyncInferError("; ".join(failed))
        together: list[Outcome] = []
        for turn in range(PASSES):
            for device, driver in zip(devices, opened, strict=True):
                await _alone(stage, device, driver, turn)
            each = None if quiet or turn else _printer(stage)
            together.append(await _pass(stage, opened, stage.items, each))
        stage.together = min(together, key=lambda outcome: outcome.seconds)
    finally:
        await close_all(opened)


async def _alone(stage: Stage, device: DeviceConfig, driver: Opened, turn: int) -> None:
    """One pass of one device; the slowed one gets the first tasks only, and only once."""
    slowdown = device.options.get("slowdown", 1.0)
    if slowdown > 1 and turn:
        return
    items = stage.items[: max(1, round(len(stage.items) / slowdown))]
    outcome = await _pass(stage, [driver], items)
    best = stage.alone.get(device.name, outcome)
    stage.alone[device.name] = min(best, outcome, key=lambda one: one.seconds)


def _plain_loop(stage: Stage) -> list[Any]:
    """What the model returns without any of this project: one input after another."""
    torch, model = optional("torch", "the demo"), stage.model
    assert model.builtin is not None  # noqa: S101  # stages have built-in models
    before, after, module = model.builtin.preprocess, model.builtin.postprocess, model.loaded
    distinct = len(stage.items) // stage.rounds
    with torch.inference_mode():
        outputs = [after(module(before(x)[None])[0]) for x in stage.items[:distinct]]
    return outputs * stage.rounds


async def _pass(
    stage: Stage, drivers: Sequence[Opened], items: Sequence[Any], each: Show | None = None
) -> Outcome:
    outcome = Outcome(Timeline([driver.name for driver in drivers]))
    async with Dispatcher(drivers, on_event=outcome.timeline, wait_for="all") as dispatcher:
        async for result in dispatcher.results(items):
            outcome.take(result)
            if each:
                each(result.index, outcome.values[-1])
        stats = dispatcher.stats()
    outcome.devices, outcome.held = stats.devices, stats.hold_mean
    return outcome


def _printer(stage: Stage) -> Show:
    """Prints results in order as they arrive: a line for each picture, 60 digits in a line."""
    line: list[str] = []

    def print_one(index: int, value: Any) -> None:
        if stage.targets is None:
            if index < len(stage.items) // stage.rounds:
                print(f"  {stage.names[index]:<16} {value}", flush=True)
            return
        line.append(str(value))
        if len(line) == 60 or index + 1 == len(stage.items):
            print(f"  {''.join(line)}", flush=True)
            line.clear()

    return print_one
