"""``build_firmware``: the whole way from a model to an ELF, done once for each content."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from asyncinfer.registry import MODELS
from asyncinfer_drivers.cortex_m.builder import toolchain
from asyncinfer_drivers.cortex_m.builder.boards import Board, find_board
from asyncinfer_drivers.cortex_m.builder.comparison import compare, compare_layers
from asyncinfer_drivers.cortex_m.builder.compile import (
    Captured,
    CompiledModel,
    capture,
    compile_model,
)
from asyncinfer_drivers.cortex_m.builder.delivery import delivered, scratch_folder
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.builder.judge import float_accuracy, int8_accuracy
from asyncinfer_drivers.cortex_m.builder.layout import plan_layout
from asyncinfer_drivers.cortex_m.builder.link import link_firmware, write_configuration
from asyncinfer_drivers.cortex_m.builder.precision import Precision, PrecisionError
from asyncinfer_drivers.cortex_m.builder.reference import compile_reference
from asyncinfer_drivers.cortex_m.builder.samples import (
    Samples,
    load_module,
    load_samples,
    model_name,
    plain_name,
)
from asyncinfer_drivers.cortex_m.builder.sources import digest
from asyncinfer_drivers.cortex_m.log import logger

__all__ = ("build_firmware", "cache_folder")

#: more samples than this make calibration slower, not better
_CALIBRATION = 256
#: with fewer the build warns
_FEW = 8
#: samples that are compared layer by layer
_TRACED = 8


def build_firmware(
    model: Any,
    calibration: Any,
    *,
    board: str = "stm32f405",
    output: str | os.PathLike[str] | None = None,
    emulated: bool = False,
    defines: Sequence[str] = (),
    min_snr: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Firmware:
    """Quantize ``model``, generate its C with CMSIS-NN kernels and link it for ``board``.

    The same model on the same inputs is built once, and comes from the user's cache after that.
    A model with less than ``SNR_BAR`` decibels of signal to noise in INT8, on the calibration
    inputs, is logged as a warning that names the layers which lose them.

    :param model: what ``TorchDriver`` takes, except TorchScript: a built-in model's name, a
        ``.pt2`` file, ``module:factory``, a module.
    :param calibration: inputs ``[n, ...]`` as the model takes them: an array, a ``.npy`` file, or
        the name of a built-in model, whose own inputs then also tell the accuracy.
    :param board: one of ``BOARDS``.
    :param output: a folder for the files; by default they stay in the cache.
    :param emulated: whether it is for QEMU, whose boards may lack the second memory: it is not
        used then, at the cost of requests in flight.
    :param defines: macros of the board's file: ``AI_BAUD=115200u``.
    :param min_snr: decibels; a build with less is refused with ``PrecisionError``.
    :param progress: called with what is being done, and how much of it is done.
    :raises ConfigError: before anything is compiled if an operator is not supported, the model
        does not fit the board, or a tool is missing.
    """
    target = replace(find_board(board), ccm=0) if emulated else find_board(board)
    versions = [digest(), _version("bakenn"), _version("torch"), toolchain.version()]
    key = [*versions, target.name, *defines, *(["emulated"] if emulated else [])]
    tell = progress or (lambda text: None)
    if _is_own(model) and _is_own(calibration):
        folder = _folder(model, target, [*key, model, calibration])
        made = Firmware.load(folder)
        if made is None:
            job = _Job.prepare(target, model, calibration, defines, tell)
            made = job.build_once(folder)
    else:
        job = _Job.prepare(target, model, calibration, defines, tell)
        folder = _folder(job.name, target, [*key, job.name, job.content()])
        made = Firmware.load(folder) or job.build_once(folder)
        made = job.judged(made)
    _check(made, model_name(model), min_snr)
    for text in made.on_host:
        logger.warning("model %r: the board leaves to the host %s", model_name(model), text)
    return made if output is None else delivered(made, Path(output))


def cache_folder() -> Path:
    """Where firmware is kept, once there is some."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "asyncinfer" / "firmware"


def _is_own(name: Any) -> bool:
    """Whether it names a model of this project: of these ``digest`` knows the files.

    Models of others, which they register, change with their own packages.
    """
    if not isinstance(name, str):
        return False
    found = (entry.value for entry in entry_points(group=MODELS) if entry.name == name)
    return any(value.startswith("asyncinfer_drivers.models.") for value in found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _folder(name: str, board: Board, parts: Sequence[str]) -> Path:
    """Where a firmware made of all these ``parts`` lies in the cache."""
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"{plain_name(name)}-{board.name}-{key}"


def _check(made: Firmware, name: str, min_snr: float | None) -> None:
    """Refuse what is below ``min_snr``, and warn of what is below the bar."""
    if made.precision is None:
        return
    if min_snr is not None and (text := made.precision.complaint(name, min_snr)):
        raise PrecisionError(text, made.precision)
    if made.precision.samples < _FEW:
        logger.warning(
            "model %r was calibrated on %d inputs: what others make larger is cut off, and its "
            "precision was measured on the same ones. Give some hundred like those that will come",
            name,
            made.precision.samples,
        )
    if text := made.precision.complaint(name) or made.precision.doubt(name):
        logger.warning("%s", text)


@dataclass(frozen=True)
class _Job:
    """A model that the compiler takes, and what it is built for."""

    board: Board
    name: str
    module: Any
    samples: Samples
    #: it in the compiler's operators
    captured: Captured
    defines: Sequence[str]
    tell: Callable[[str], None]

    @classmethod
    def prepare(
        cls,
        board: Board,
        model: Any,
        calibration: Any,
        defines: Sequence[str],
        tell: Callable[[str], None],
    ) -> _Job:
        """Load and export ``model``."""
        tell("exporting the model")
        name, module, samples = model_name(model), load_module(model), load_samples(calibration)
        captured = capture(module, samples.inputs[:1], name)
        return cls(board, name, module, samples, captured, defines, tell)

    def content(self) -> str:
        """A hash of what is computed, and of all inputs."""
        inputs = self.samples.inputs
        found = hashlib.sha256(f"{self.captured.digest()} {inputs.shape}".encode())
        found.update(inputs.tobytes())
        return found.hexdigest()

    def judged(self, made: Firmware) -> Firmware:
        """With the accuracy on this job's samples, whose right results are in no hash."""
        right = float_accuracy(self.module, self.samples), int8_accuracy(made, self.samples)
        return replace(made, float_accuracy=right[0], int8_accuracy=right[1])

    def build_once(self, folder: Path) -> Firmware:
        """Build beside ``folder`` and move it there whole: others may be building the same."""
        with scratch_folder(folder) as scratch:
            self._build(scratch)
            with suppress(OSError):  # someone else was faster
                scratch.rename(folder)
            return Firmware.load(folder) or self._build(folder)

    def _build(self, folder: Path) -> Firmware:
        generated = folder / "generated"
        shutil.rmtree(generated, ignore_errors=True)
        generated.mkdir(parents=True)
        inputs = self.samples.some(_CALIBRATION)
        counted = self._counter("calibrating", len(inputs))
        compiled = compile_model(self.captured, inputs, self.name, generated, counted)
        made = self._link(folder, compiled)
        self.tell("compiling the integer reference")
        if not made.library.exists():
            compile_reference(compiled.portable, made.library)
        made = self.judged(replace(made, precision=self._compare(made, compiled)))
        made.save()
        return made

    def _link(self, folder: Path, compiled: CompiledModel) -> Firmware:
        generated, elf = folder / "generated", folder / "firmware.elf"
        sizes = compiled.arena_bytes, compiled.constant_bytes
        answer = sum(output.size for output in compiled.outputs)
        layout = plan_layout(self.board, *sizes, compiled.input.size, answer)
        model_id = f"{plain_name(self.name)}-{compiled.digest[:12]}"
        write_configuration(generated, self.board.name, model_id, compiled, layout)
        self.tell(f"compiling the firmware for {self.board.name}: {layout}")
        link_firmware(self.board, generated, compiled, elf, self.defines)
        shutil.rmtree(generated / "objects")
        memory = toolchain.measure(elf)
        return Firmware(
            directory=folder,
            board=self.board.name,
            model_id=model_id,
            flash_bytes=memory.flash,
            ram_bytes=memory.ram,
            arena_bytes=compiled.arena_bytes,
            kernels=toolchain.kernels(elf),
            input=compiled.input,
            outputs=compiled.outputs,
            frames_in_flight=layout.frames_in_flight,
            max_samples=layout.max_samples,
            on_host=self.captured.on_host,
            in_ccm=layout.in_ccm,
        )

    def _compare(self, made: Firmware, compiled: CompiledModel) -> Precision:
        inputs = self.samples.some(_CALIBRATION)
        counted = self._counter("comparing with float", len(inputs))
        tensors = made.input, made.outputs
        whole = compare(self.captured, inputs, made.reference, *tensors, counted)
        some = self.samples.some(_TRACED)
        counted = self._counter("comparing layer by layer", len(some))
        layers = compare_layers(self.captured, compiled.plan, some, compiled.input, counted)
        return replace(whole, layers=layers)

    def _counter(self, doing: str, count: int) -> Callable[[int], None]:
        def counted(done: int) -> None:
            self.tell(f"{doing}: {done} of {count} inputs")

        return counted
