"""The firmware as a program of this computer, its line on standard input and output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asyncinfer_drivers.cortex_m.builder import toolchain
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.builder.sources import firmware_sources

__all__ = ("SANITIZERS", "build_host_program")

#: AddressSanitizer and UBSan; the first finding ends the program
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_PORTABLE = ("frame", "link", "main", "model", "service")


def build_host_program(
    firmware: Firmware, program: Path, flags: Sequence[str] = SANITIZERS
) -> Path:
    """Compile the firmware's portable parts and its model with ``boards/host.c``.

    It speaks the wire protocol, and gives the same results, without an emulator.
    """
    root, generated = firmware_sources(), firmware.generated
    own = [*(root / "src" / f"{name}.c" for name in _PORTABLE), root / "boards" / "host.c"]
    model = sorted((generated / "portable").glob("*.c"))
    folders = (root / "include", root / "src", generated, generated / "portable")
    include = [f"-I{folder}" for folder in folders]
    command = [toolchain.host_compiler(), "-std=gnu11", "-O1", *flags, *include]
    toolchain.run([*command, *own, generated / "model_identity.c", *model, "-o", program])
    return program
