"""The demo's microcontroller: digits on this host and on a Cortex-M4 in QEMU, as one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from asyncinfer import config as configuration
from asyncinfer.cli.demo_stage import Stage
from asyncinfer.cli.output import note, people, rate, table
from asyncinfer.cli.tools import run_async
from asyncinfer.config import DeviceConfig
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import ConfigError
from asyncinfer.registry import needed_for
from asyncinfer.result import Result

if TYPE_CHECKING:
    from asyncinfer_drivers.cortex_m.emulated_driver import EmulatedCortexM4Driver

__all__ = ("board_stage", "show_board")

HOST = DeviceConfig("torch", "cpu, slowed", {"device": "cpu", "threads": 1, "slowdown": 8.0})
_HEADING = "digits on a CPU slowed 8 times, one by one, and on a Cortex-M4 (emulated by QEMU)"


def board_stage(stage: Stage) -> Mapping[str, Any]:
    """Run the digits of ``stage`` on both; or say what is missing, under that name."""
    try:
        with needed_for("the Cortex-M4"):
            from asyncinfer_drivers.cortex_m.emulated_driver import missing
        if text := missing():
            raise ConfigError(text)
    except ConfigError as error:
        note(f"without the Cortex-M4: {error}")
        return {"missing": str(error)}
    note(f"{_HEADING}: the firmware is built on first use")
    return run_async(_run(stage))


async def _run(stage: Stage) -> Mapping[str, Any]:
    (board,) = configuration.select(["cortex_m4"])
    board = replace(board, name="cortex_m4 (emulated)")
    drivers = [device.build(stage.model) for device in (HOST, board)]
    items, wanted = stage.items[: stage.distinct], stage.expected[: stage.distinct]
    async with Dispatcher(drivers, wait_for="all") as dispatcher:
        results = [result async for result in dispatcher.results(items)]
    report = cast("EmulatedCortexM4Driver", drivers[1]).report()
    seconds = max(r.finished for r in results) - min(r.started for r in results)
    return {
        "tasks": len(results),
        "in_order": [result.index for result in results] == list(range(len(items))),
        "host_exact": all(
            result.value == expected
            for result, expected in zip(results, wanted, strict=True)
            if result.device == HOST.name
        ),
        "throughput": len(results) / seconds,
        **report,
        "devices": [_share(results, name, stage) for name in (HOST.name, board.name)],
    }


def _share(results: Sequence[Result[Any]], name: str, stage: Stage) -> Mapping[str, Any]:
    mine = [result for result in results if result.device == name]
    targets = stage.targets or stage.expected
    right = sum(result.value == targets[result.index] for result in mine)
    return {
        "name": name,
        "tasks": len(mine),
        "share": len(mine) / len(results),
        "accuracy": right / len(mine) if mine else None,
    }


def show_board(facts: Mapping[str, Any]) -> None:
    """Print each device's share and accuracy."""
    if "missing" in facts:
        return
    rows = [
        (
            device["name"],
            device["tasks"],
            f"{device['share']:.1%}",
            "-" if device["accuracy"] is None else f"{device['accuracy']:.2%}",
        )
        for device in facts["devices"]
    ]
    screen = people()
    screen.print()
    screen.print(table(("device", "tasks", "share", "right"), rows, title=_HEADING))
    screen.print(
        f"{rate(facts['throughput'])} tasks/s together; the Cortex-M4 runs int8, bit-exact to its "
        f"compiler's reference: {'yes' if facts['bit_exact'] else 'NO'}"
    )
