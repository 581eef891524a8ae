"""The boards that firmware can be built for; each has ``NAME.c`` and ``NAME.ld`` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from asyncinfer.errors import ConfigError

__all__ = ("BOARDS", "Board", "find_board")


@dataclass(frozen=True)
class Board:
    """The memories of one board, in bytes; its linker script says the same."""

    #: as ``board`` takes it
    name: str
    #: for the program and the model's weights
    flash: int
    #: for all that changes while it runs
    ram: int
    #: a second memory, which can hold large buffers; 0 if there is none
    ccm: int = 0


#: the boards there are, by name
BOARDS: Mapping[str, Board] = MappingProxyType(
    {
        board.name: board
        for board in (
            Board("stm32f405", flash=1024 * 1024, ram=128 * 1024, ccm=64 * 1024),
            Board("mps2_an386", flash=4096 * 1024, ram=4096 * 1024),
            Board("nucleo_l4r5zi", flash=2048 * 1024, ram=640 * 1024),
        )
    }
)


def find_board(name: str) -> Board:
    """The board called ``name``, or ``ConfigError`` with the known ones."""
    if name not in BOARDS:
        raise ConfigError(f"unknown board {name!r}; known: {', '.join(BOARDS)}")
    return BOARDS[name]
