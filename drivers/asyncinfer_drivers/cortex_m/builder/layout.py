"""What fits: where the arena goes, and how many requests of how many samples are in flight."""

from __future__ import annotations

from dataclasses import dataclass

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder.boards import Board

__all__ = ("Layout", "plan_layout")

#: bytes of the stack, as in the linker scripts
_STACK_BYTES = 4096
#: bytes of the transmit queue, the counters and the library's variables
_FIXED_BYTES = 4096
#: bytes of flash for the firmware without the model's constants, with the largest of CMSIS-NN's
#: functions
_CODE_BYTES = 32 * 1024
#: bytes that the samples of one request should make, about
_REQUEST_BYTES = 2048
#: samples of one request at most, however small they are
_MOST_SAMPLES = 32


@dataclass(frozen=True)
class Layout:
    """How a firmware uses a board's memory."""

    frames_in_flight: int
    max_samples: int
    #: the memory region of the linker script that holds the arena
    arena: str


def plan_layout(
    board: Board, arena: int, constants: int, input_bytes: int, output_bytes: int
) -> Layout:
    """The most parallel layout that fits, or ``ConfigError``: which buffer, by how much."""
    if (over := constants + _CODE_BYTES - board.flash) > 0:
        raise ConfigError(
            f"the model's constants ({constants:,} B) do not fit the flash of {board.name}: "
            f"{over:,} B too many"
        )
    many = max(1, min(_MOST_SAMPLES, _REQUEST_BYTES // input_bytes))
    room = board.ram - _STACK_BYTES - _FIXED_BYTES
    for frames, samples in ((4, many), (4, 1), (2, 1)):
        buffers = _buffers(frames, samples, input_bytes, output_bytes)
        if arena + buffers <= room:
            return Layout(frames, samples, "RAM")
        if arena <= board.ccm and buffers <= room:
            return Layout(frames, samples, "CCM")
    if arena > max(room, board.ccm):
        over = arena - max(room, board.ccm)
        raise ConfigError(
            f"the model's arena ({arena:,} B) does not fit {board.name}: {over:,} B too many"
        )
    over = buffers - (room if arena <= board.ccm else room - arena)
    raise ConfigError(
        f"the request buffers ({buffers:,} B for 2 inputs of {input_bytes:,} B) do not fit "
        f"{board.name} beside the arena ({arena:,} B): {over:,} B too many"
    )


def _buffers(frames: int, samples: int, input_bytes: int, output_bytes: int) -> int:
    body = max(samples * input_bytes, 64) + 12
    line = body + body // 254 + 3
    answer = samples * output_bytes + 1024
    return frames * line + body + answer
