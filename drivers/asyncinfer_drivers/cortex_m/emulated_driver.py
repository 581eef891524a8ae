"""``EmulatedCortexM4Driver``: a device that is a board in QEMU, firmware and all."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from asyncinfer.driver import THIS_HOST
from asyncinfer.errors import ConfigError
from asyncinfer.registry import model_names
from asyncinfer_drivers._shared.options import takes, values
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.driver import CortexM4Driver
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4, missing_emulator
from asyncinfer_drivers.cortex_m.link import Link
from asyncinfer_drivers.cortex_m.options import BoardOptions
from asyncinfer_drivers.cortex_m.ports import connector
from asyncinfer_drivers.cortex_m.proxy import Faults
from asyncinfer_drivers.cortex_m.transport import (
    BITS_PER_BYTE,
    ByteTransport,
    Receiver,
    SerialOptions,
)

__all__ = ("EmulatedCortexM4Driver", "EmulatedCortexM4Options", "missing")

#: how the port is opened; QEMU ignores it
_QEMU_SERIAL = SerialOptions(baudrate=115_200)


def missing() -> str | None:
    """What to install so that a firmware can be built and emulated; ``None`` if all is there."""
    if importlib.util.find_spec("bakenn") is None:
        return "building a firmware needs bakenn: pip install 'asyncinfer[firmware]'"
    if shutil.which("arm-none-eabi-gcc") is None:
        debs = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
        return f"building a firmware needs arm-none-eabi-gcc: apt-get install {debs}"
    return missing_emulator()


@dataclass(frozen=True, kw_only=True)
class EmulatedCortexM4Options(BoardOptions):
    """What ``EmulatedCortexM4Driver`` takes."""

    #: a built-in model, a ``.pt2`` file, ``module:factory``, or a module
    model: Any = "digits"
    #: inputs to quantise with, an array or ``.npy`` file; a built-in model has its own
    calibration: Any = None
    #: a firmware that is there, instead of one that is built for ``model``
    elf: str | Path | None = None
    #: the board, one of ``emulated.BOARDS``
    machine: str = "stm32f405"
    #: paces the line; ``None``: as fast as QEMU reads
    baudrate: int | None = None
    #: on the line; a number is the share of bytes flipped, dropped or doubled
    faults: Faults | float | None = None
    #: as for ``EmulatedCortexM4``
    icount: int | str | None = None
    #: whether each result is compared with the compiler's integer reference
    compare: bool = True


class EmulatedCortexM4Driver(CortexM4Driver):
    """A ``CortexM4Driver`` with a board of its own in QEMU, from ``open`` to ``close``.

    ``open`` builds the firmware for ``model``, which takes some seconds the first time, unless
    ``elf`` is given. Results are those of a real board. Times are this host's. Its arguments are
    the fields of ``EmulatedCortexM4Options``.
    """

    #: ``asyncinfer.config`` passes the model's name
    model_from: ClassVar[str] = "name"

    @takes(EmulatedCortexM4Options)
    def __init__(self, options: EmulatedCortexM4Options) -> None:
        super().__init__(self._connect_to_board, **values(options, BoardOptions))
        baudrate, faults = options.baudrate, options.faults
        self._byte_seconds = BITS_PER_BYTE / baudrate if baudrate else 0.0
        self._source = options.model, options.calibration, options.machine
        line = Faults.mixed(faults) if isinstance(faults, int | float) else faults
        self._line: dict[str, Any] = {
            "baudrate": baudrate,
            "faults": line,
            "icount": options.icount,
        }
        self._elf = None if options.elf is None else Path(options.elf)
        self._compare = options.compare
        self._checker: Worker | None = None
        #: what was built, once it was; ``None`` if ``elf`` was given
        self.firmware: Any = None
        #: the board while the driver is open: it can be killed, stopped, reset and cut
        self.emulated: EmulatedCortexM4 | None = None
        #: samples compared with the reference, and those that differed
        self.compared = self.different = 0

    def _usually_shared(self) -> frozenset[str]:
        return frozenset((THIS_HOST,))

    # ---- its life

    async def open(self) -> None:
        """Build the firmware, power the board on, say HELLO. ``ConfigError``: what is missing."""
        try:
            if self._checker is None:
                self._checker = Worker(f"{self.name}-firmware")
                self._checker.start()
            await self._power_on()
            await super().open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Free the port and power the board off. Idempotent."""
        emulated, self.emulated = self.emulated, None
        checker, self._checker = self._checker, None
        try:
            await super().close()
        finally:
            try:
                if emulated is not None:
                    await emulated.close()
            finally:
                if checker is not None:
                    await checker.stop()

    async def _power_on(self) -> None:
        if self.emulated is None:
            if text := missing_emulator():
                raise ConfigError(f"{self.name}: {text}")
            elf = self._elf or await self._built()
            self.emulated = EmulatedCortexM4(elf, board=self._source[2], **self._line)
        await self.emulated.start()

    async def _built(self) -> Path:
        if self.firmware is None:
            assert self._checker is not None  # noqa: S101  # ``open`` made it
            self.firmware = await self._checker.run(self._build)
        return Path(self.firmware.elf)

    def _build(self) -> Any:
        if text := missing():
            raise ConfigError(f"{self.name}: {text}")
        from asyncinfer_drivers.cortex_m.builder.emulated import build_emulated as build_firmware

        model, calibration, board = self._source
        if isinstance(model, str) and model in model_names():
            return build_firmware(model, model if calibration is None else calibration, board=board)
        if calibration is None:
            raise ConfigError(
                f"{self.name}: quantising {model!r} needs calibration, inputs or a .npy file: in a "
                'config, driver = "cortex_m4_emulated" with calibration = "inputs.npy"'
            )
        return build_firmware(model, calibration, board=board)  # kept in the user's cache

    async def _connect_to_board(self, receiver: Receiver) -> ByteTransport:
        """Open the port of the board, whichever it has by now."""
        if self.emulated is None:
            raise OSError("the board is off")
        return await connector(self.name, self.emulated.port, _QEMU_SERIAL)(receiver)

    # ---- its work

    async def _outputs(self, link: Link, part: Sequence[bytes], answer: Any) -> list[Any]:
        checker = self._checker
        comparable = self._compare and self.firmware is not None
        if comparable and checker is not None and isinstance(answer, frames.Result):
            self.different += await checker.run(self._differing, part, answer.data)
            self.compared += len(part)
        return await super()._outputs(link, part, answer)

    def _differing(self, part: Sequence[bytes], data: bytes) -> int:
        """How many of these samples' outputs are not the reference's."""
        import numpy as np

        inputs = np.frombuffer(b"".join(part), np.int8)
        shape = self.firmware.input.shape
        right = self.firmware.reference(inputs.reshape(len(part), *shape)).reshape(len(part), -1)
        found = np.frombuffer(data, np.int8).reshape(len(part), -1)
        return int((right != found).any(axis=1).sum())

    def report(self) -> Mapping[str, Any]:
        """What ``asyncinfer run`` shows: bit-exact or not, what was cut off, sizes, precision."""
        facts: dict[str, Any] = {"emulated": True, "board": self._source[2]}
        facts["bit_exact"] = self.different == 0 if self.compared else None
        facts["compared"] = self.compared
        facts["cut_off"] = self._steps.cut_off
        for key in ("flash_bytes", "ram_bytes", "kernels", "float_accuracy", "int8_accuracy"):
            facts[key] = getattr(self.firmware, key, None)
        facts["snr_db"] = getattr(getattr(self.firmware, "precision", None), "snr_db", None)
        return facts
