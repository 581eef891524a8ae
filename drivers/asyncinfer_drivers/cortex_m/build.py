"""From a PyTorch module to a firmware: INT8, C with CMSIS-NN kernels, ELF."""

from __future__ import annotations

from asyncinfer_drivers.cortex_m.builder.boards import BOARDS, Board
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.builder.host import build_host_program
from asyncinfer_drivers.cortex_m.builder.pipeline import build_firmware
from asyncinfer_drivers.cortex_m.builder.precision import (
    SNR_BAR,
    LayerPrecision,
    Precision,
    PrecisionError,
)
from asyncinfer_drivers.cortex_m.builder.reference import IntegerReference

__all__ = (
    "BOARDS",
    "SNR_BAR",
    "Board",
    "Firmware",
    "IntegerReference",
    "LayerPrecision",
    "Precision",
    "PrecisionError",
    "build_firmware",
    "build_host_program",
)
