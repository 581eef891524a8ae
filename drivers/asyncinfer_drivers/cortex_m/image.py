"""Which board a firmware's file is for, as the file itself says."""

from __future__ import annotations

import struct
from pathlib import Path

from asyncinfer.errors import ConfigError

__all__ = ("board_of", "check_image")

#: how the firmware's name begins, which stands behind the board's in what the board says of itself
_FIRMWARE = b"asyncinfer "
#: longest name of a board that is looked for
_LONGEST = 64
#: where flash begins, by the beginning of a board's name
_FLASH = {"stm32": 0x0800_0000, "nucleo": 0x0800_0000, "mps2": 0}
#: bytes beyond which no flash reaches
_FLASH_BYTES = 0x0100_0000
#: of an ELF: its first bytes for 32 bits, little-endian; the number of ARM's
_ELF, _ARM = b"\x7fELF\x01\x01", 40


def check_image(file: Path, board: str) -> None:
    """Raise ``ConfigError`` if this ``.elf`` or ``.bin`` is a program for something else."""
    data = file.read_bytes()
    found = board_of(data)
    if found == board:
        return
    if found is not None:
        raise ConfigError(f"{file} was built for board {found!r}, not for {board!r}")
    begins = next((at for name, at in _FLASH.items() if board.startswith(name)), None)
    if text := _not_code(data, begins):
        raise ConfigError(f"{file} is no firmware for {board!r}: {text}")


def board_of(data: bytes) -> str | None:
    """The board that our build has written into a firmware; ``None`` if it is none of ours."""
    at = data.find(_FIRMWARE)
    while at >= 0:
        head = data[max(0, at - 1 - _LONGEST) : max(0, at - 1)]
        for size in range(1, len(head)):
            name = head[-size:]
            if head[-size - 1] == size and name.isascii() and name.decode().isprintable():
                return name.decode()
        at = data.find(_FIRMWARE, at + 1)
    return None


def _not_code(data: bytes, flash: int | None) -> str | None:
    """Why this cannot run from flash that begins there; ``None`` if it may."""
    if data.startswith(b"\x7fELF"):
        if not data.startswith(_ELF) or len(data) < 52 or _half(data, 18) != _ARM:
            return "it is an ELF for another processor"
        entry = _word(data, 24)
    elif len(data) < 8:
        return "it is too short"
    else:
        entry = _word(data, 4)  # the second of the vectors: where a reset goes
    if flash is not None and not flash <= entry < flash + _FLASH_BYTES:
        return f"it begins at {entry:#x}, its flash at {flash:#x}"
    return None


def _half(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])


def _word(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
