"""What a build gives: files, sizes, the model's tensors, and the reference to compare with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asyncinfer_drivers.cortex_m.builder.precision import Precision
from asyncinfer_drivers.cortex_m.builder.reference import IntegerReference
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.specs import TensorSpec

__all__ = ("Firmware",)

_RECORD = "firmware.json"


@dataclass(frozen=True)
class Firmware:
    """A firmware for one board with one model."""

    #: where all of it lies
    directory: Path
    #: its name, one of ``BOARDS``
    board: str
    #: name and hash of the model, as the board says in HELLO_REPLY
    model_id: str
    #: the program, the kernels and the weights
    flash_bytes: int
    #: variables, buffers, the arena and the stack
    ram_bytes: int
    #: the part of it that the model computes in
    arena_bytes: int
    #: CMSIS-NN's functions that are in the ELF
    kernels: tuple[str, ...]
    #: what it takes for each sample, in its own order of axes: channels last
    input: TensorSpec
    #: what comes back, one tensor behind another, in the same way
    outputs: tuple[TensorSpec, ...]
    #: requests that may be unanswered at once
    frames_in_flight: int
    #: most samples in one request
    max_samples: int
    #: the buffers that lie in the board's second memory: ``arena``, ``queue``, ``request``
    in_ccm: tuple[str, ...] = ()
    #: share of right results on the calibration set's inputs, where their targets are known
    float_accuracy: float | None = None
    #: the same of the quantised model, as the board computes it
    int8_accuracy: float | None = None
    #: the quantised model beside the float module, on the calibration inputs
    precision: Precision | None = None
    #: operators at the model's end that the board leaves to the host, by output
    on_host: tuple[str, ...] = ()

    @property
    def output(self) -> TensorSpec:
        """What comes back in one: the numbers of all outputs if there are several."""
        if len(self.outputs) == 1:
            return self.outputs[0]
        return TensorSpec("outputs", Datatype.INT8, (sum(one.size for one in self.outputs),))

    @property
    def elf(self) -> Path:
        """For QEMU, debuggers and openocd."""
        return self.directory / "firmware.elf"

    @property
    def bin(self) -> Path:
        """For st-flash and DFU."""
        return self.directory / "firmware.bin"

    @property
    def generated(self) -> Path:
        """The model's portable C and the configuration, for other programs with this model."""
        return self.directory / "generated"

    @property
    def library(self) -> Path:
        """The reference's code; named by the model, as one that is loaded stays so."""
        return self.directory / f"{self.model_id}.so"

    @cached_property
    def reference(self) -> IntegerReference:
        """Computes what the board must answer, bit for bit."""
        return IntegerReference(self.library, self.input, self.output, self.arena_bytes)

    def facts(self) -> dict[str, Any]:
        """The figures, for a report."""
        left_out = ("directory", "input", "outputs")
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def save(self) -> None:
        """Write the record that ``load`` reads."""
        record = asdict(self)
        del record["directory"]
        (self.directory / _RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def forget(self) -> None:
        """Have ``load`` find nothing."""
        (self.directory / _RECORD).unlink(missing_ok=True)

    @classmethod
    def load(cls, directory: Path) -> Firmware | None:
        """The firmware in ``directory``, or ``None`` if there is no whole one."""
        try:
            record = json.loads((directory / _RECORD).read_text())
        except (OSError, ValueError):
            return None
        record["kernels"] = tuple(record["kernels"])
        for name in ("on_host", "in_ccm"):
            record[name] = tuple(record.get(name, ()))
        record["input"] = _tensor(record["input"])
        outputs = [record.pop("output")] if "output" in record else record["outputs"]
        record["outputs"] = tuple(map(_tensor, outputs))
        if record.get("precision"):
            record["precision"] = Precision.of(record["precision"])
        return cls(directory=directory, **record)


def _tensor(record: dict[str, Any]) -> TensorSpec:
    shape, datatype = tuple(record["shape"]), Datatype(record["datatype"])
    axes = record.get("axes")  # not in records of protocol 1
    numbers = record["scale"], record["zero_point"]
    return TensorSpec(
        record["name"], datatype, shape, *numbers, None if axes is None else tuple(axes)
    )
