"""Whether QEMU's model of a board has the memory that a firmware uses.

The core-coupled memory of the STM32F405 is there in QEMU 10, not in 7.2. Without it the program
ends in a hard fault at its first inference, again and again.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ("lacking_memory",)

#: where the second memory of an STM32F4 begins, and its size
_CCM = range(0x10000000, 0x10010000)
_LOAD = 1
#: seconds for QEMU to answer
_PATIENCE = 30.0


def lacking_memory(elf: Path, qemu: str, machine: str) -> str | None:
    """Why ``elf`` cannot run on ``machine``; ``None`` if it can, or is no ELF."""
    if not any(address in _CCM for address in _segments(elf)):
        return None
    told = subprocess.run(  # noqa: S603  # QEMU, with arguments of ours
        [qemu, "-M", machine, "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"],
        input="info mtree -f\nquit\n",
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    ).stdout
    if f"{_CCM.start:016x}-{_CCM.stop - 1:016x}" in told:
        return None
    return (
        f"{elf} uses the core-coupled memory, which this {qemu} lacks (version 10 has it): "
        "build it with --emulated"
    )


def _segments(elf: Path) -> Iterator[int]:
    """The addresses at which the file's segments with any contents begin."""
    data = elf.read_bytes()
    if len(data) < 52 or data[:6] != b"\x7fELF\x01\x01":
        return
    (start,) = struct.unpack_from("<I", data, 28)
    size, count = struct.unpack_from("<HH", data, 42)
    for number in range(count):
        header = data[start + number * size :][:32]
        if len(header) == 32:
            kind, _, address, _, _, length, _, _ = struct.unpack("<8I", header)
            if kind == _LOAD and length:
                yield address
