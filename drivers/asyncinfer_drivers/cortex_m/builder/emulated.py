"""Firmware for QEMU, whose boards may lack their second memory."""

from __future__ import annotations

from typing import Any

from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.builder.pipeline import build_firmware

__all__ = ("build_emulated",)


def build_emulated(model: Any, calibration: Any, **options: Any) -> Firmware:
    """The board's own firmware, or one with ``emulated`` if that uses the second memory."""
    made = build_firmware(model, calibration, **options)
    return build_firmware(model, calibration, emulated=True, **options) if made.in_ccm else made
