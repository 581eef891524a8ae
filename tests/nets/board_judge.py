"""Builds one of the nets and runs it on the emulated board beside PyTorch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import board_nets
import numpy as np
import torch

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.build import build_firmware
from asyncinfer_drivers.cortex_m.builder.judge import encode
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.results import ResultCodec

BOARD = "mps2_an386"
#: inputs that the emulated board computes
RUN = 4


@dataclass
class Verdict:
    """What became of a net."""

    name: str
    #: ``built``, ``refused`` as it should be, or ``wrong``
    outcome: str
    seconds: float
    #: in words, for people
    said: str = ""
    snr_db: float | None = None
    kernels: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()


async def judge(net: board_nets.Net) -> Verdict:
    """Build ``net`` and compare, or see that it is refused as it should be."""
    module, inputs = net.module(), net.inputs()
    started = time.perf_counter()
    try:
        made = build_firmware(module, inputs.numpy(), board=BOARD)
    except ConfigError as error:
        spent, text = time.perf_counter() - started, str(error)
        right = net.refused and net.refused in text and ": " in text
        return Verdict(net.name, "refused" if right else "wrong", spent, text)
    spent = time.perf_counter() - started
    precision = made.precision
    assert precision is not None
    verdict = Verdict(net.name, "built", spent, "", precision.snr_db, made.kernels, made.on_host)
    if net.refused:
        verdict.outcome, verdict.said = "wrong", "was not refused"
        return verdict
    given = list(inputs[:RUN].numpy())
    codes = made.reference(encode(made.input, np.stack(given)))
    wanted = ResultCodec(made.outputs).decode(codes.tobytes(), RUN)
    async with EmulatedCortexM4(made.elf, board=BOARD) as board:
        driver = CortexM4Driver(board.port, max_batch=RUN)
        await driver.open()
        try:
            found = await driver.infer(given)
        finally:
            await driver.close()
    verdict.said = " ".join(
        text for pair in zip(wanted, found, strict=True) if (text := _unlike(*pair))
    )
    if not made.on_host and not verdict.said:
        with torch.inference_mode():
            right = [module(x[None]) for x in inputs[:RUN]]
        verdict.said = " ".join(
            text for pair in zip(right, found, strict=True) if (text := _shapes(*pair))
        )
    if verdict.said:
        verdict.outcome = "wrong"
    return verdict


def _unlike(wanted: Any, found: Any) -> str:
    """Empty if the bytes are the same."""
    if isinstance(found, BaseException):
        return repr(found)
    ours, theirs = list(_leaves(wanted)), list(_leaves(found))
    same = len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))
    return "" if same else "not bit-exact."


def _shapes(right: Any, found: Any) -> str:
    """Empty if PyTorch has results of the same structure and shapes."""
    if isinstance(right, torch.Tensor):
        shape = tuple(right.shape[1:])
        return "" if shape == np.shape(found) else f"shape {np.shape(found)}, not {shape}."
    if isinstance(right, dict) != isinstance(found, dict) or len(right) != len(found):
        return f"{type(found).__name__}, not {type(right).__name__}."
    keys = list(right) if isinstance(right, dict) else list(range(len(right)))
    return "".join(_shapes(right[key], found[key]) for key in keys)


def _leaves(result: Any) -> Any:
    if isinstance(result, dict | tuple):
        for part in result.values() if isinstance(result, dict) else result:
            yield from _leaves(part)
    else:
        yield result
