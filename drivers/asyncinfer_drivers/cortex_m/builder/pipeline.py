"""``build_firmware``: the whole way from a model to an ELF, done once for each built-in model."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asyncinfer.registry import model_names
from asyncinfer_drivers.cortex_m.builder import toolchain
from asyncinfer_drivers.cortex_m.builder.boards import Board, find_board
from asyncinfer_drivers.cortex_m.builder.compile import compile_model
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.builder.judge import float_accuracy, int8_accuracy
from asyncinfer_drivers.cortex_m.builder.layout import plan_layout
from asyncinfer_drivers.cortex_m.builder.link import link_firmware, write_configuration
from asyncinfer_drivers.cortex_m.builder.reference import compile_reference
from asyncinfer_drivers.cortex_m.builder.samples import load_module, load_samples, model_name
from asyncinfer_drivers.cortex_m.builder.sources import digest

__all__ = ("build_firmware", "cache_folder")

#: more samples than this make calibration slower, not better
_CALIBRATION = 256


def build_firmware(
    model: Any,
    calibration: Any,
    *,
    board: str = "stm32f405",
    output: str | os.PathLike[str] | None = None,
    defines: Sequence[str] = (),
) -> Firmware:
    """Quantize ``model``, generate its C with CMSIS-NN kernels and link it for ``board``.

    :param model: what ``TorchDriver`` takes, except TorchScript: a built-in model's name, a
        ``.pt2`` file, ``module:factory``, a module.
    :param calibration: inputs ``[n, ...]`` as the model takes them: an array, a ``.npy`` file, or
        the name of a built-in model, whose own inputs then also tell the accuracy.
    :param board: one of ``BOARDS``.
    :param output: a folder for the files; by default one in the user's cache, where a built-in
        model is built only once.
    :param defines: macros of the board's file: ``AI_BAUD=115200u``.
    :raises ConfigError: before anything is compiled if an operator is not supported, the model
        does not fit the board, or a tool is missing.
    """
    target = find_board(board)
    compiler = toolchain.version()
    if output is not None:
        return _build(target, model, calibration, Path(output), defines)
    if not (_is_builtin(model) and _is_builtin(calibration)):
        folder = Path(tempfile.mkdtemp(dir=cache_folder()))
        return _build(target, model, calibration, folder, defines)
    parts = (
        digest(),
        _version("bakenn"),
        _version("torch"),
        compiler,
        board,
        model,
        calibration,
        *defines,
    )
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{model}-{board}-{key}"
    return Firmware.load(folder) or _build_once(target, model, calibration, folder, defines)


def cache_folder() -> Path:
    """Where firmware is kept; made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "asyncinfer" / "firmware"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_builtin(name: Any) -> bool:
    return isinstance(name, str) and name in model_names()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _build_once(
    board: Board, model: str, calibration: str, folder: Path, defines: Sequence[str]
) -> Firmware:
    """Build beside ``folder`` and move it there whole: others may be building the same."""
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _build(board, model, calibration, scratch, defines)
        with suppress(OSError):  # someone else was faster
            scratch.rename(folder)
        return Firmware.load(folder) or _build(board, model, calibration, folder, defines)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build(
    board: Board, model: Any, calibration: Any, folder: Path, defines: Sequence[str]
) -> Firmware:
    folder = folder.expanduser().absolute()
    generated = folder / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    generated.mkdir(parents=True)
    name, module, samples = model_name(model), load_module(model), load_samples(calibration)
    compiled = compile_model(module, samples.some(_CALIBRATION), name, generated)
    sizes = compiled.arena_bytes, compiled.constant_bytes
    layout = plan_layout(board, *sizes, compiled.input.size, compiled.output.size)
    model_id = f"{name}-{compiled.digest[:12]}"
    write_configuration(generated, board.name, model_id, compiled, layout)
    elf = folder / "firmware.elf"
    link_firmware(board, generated, compiled, elf, defines)
    shutil.rmtree(generated / "objects")
    memory = toolchain.measure(elf)
    firmware = Firmware(
        directory=folder,
        board=board.name,
        model_id=model_id,
        flash_bytes=memory.flash,
        ram_bytes=memory.ram,
        arena_bytes=compiled.arena_bytes,
        kernels=toolchain.kernels(elf),
        input=compiled.input,
        output=compiled.output,
        frames_in_flight=layout.frames_in_flight,
        max_samples=layout.max_samples,
        float_accuracy=float_accuracy(module, samples),
    )
    if not firmware.library.exists():
        compile_reference(compiled.portable, firmware.library)
    firmware = replace(firmware, int8_accuracy=int8_accuracy(firmware, samples))
    firmware.save()
    return firmware
