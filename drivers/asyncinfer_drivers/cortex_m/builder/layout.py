"""What fits: which buffer in which memory, and how many requests of how many samples in flight."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder.boards import BOARDS, Board

__all__ = ("BUFFERS", "Layout", "plan_layout")

#: the buffers that can lie in a board's second memory: what the model computes in, the requests
#: that wait, and the one being worked on with its answer
BUFFERS = ("arena", "queue", "request")
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
    #: those of ``BUFFERS`` that lie in the second memory
    in_ccm: tuple[str, ...] = ()

    def memory(self, buffer: str) -> str:
        """The memory region of the linker script that holds ``buffer``."""
        return "CCM" if buffer in self.in_ccm else "RAM"

    def __str__(self) -> str:
        requests = (
            "1 request" if self.frames_in_flight == 1 else f"{self.frames_in_flight} requests"
        )
        places = f"{' and '.join(self.in_ccm)} in the CCM" if self.in_ccm else "all in RAM"
        return f"{requests} of up to {self.max_samples} in flight, {places}"


def plan_layout(
    board: Board, arena: int, constants: int, input_bytes: int, output_bytes: int
) -> Layout:
    """The most parallel layout that fits, or ``ConfigError``: which buffer, by how much.

    Two requests in flight keep line and board busy at once; one is the last resort.
    """
    if (over := constants + _CODE_BYTES - board.flash) > 0:
        raise ConfigError(
            f"the model's constants ({constants:,} B) do not fit the flash of {board.name}: "
            f"{over:,} B too many"
        )
    many = max(1, min(_MOST_SAMPLES, _REQUEST_BYTES // input_bytes))
    for layout in _layouts(many, bool(board.ccm)):
        sizes = _sizes(layout, arena, input_bytes, output_bytes)
        if not _excess(board, sizes, layout.in_ccm):
            return layout
    sizes = _sizes(Layout(1, 1), arena, input_bytes, output_bytes)
    largest = max(board.ram - _STACK_BYTES - _FIXED_BYTES, board.ccm)
    if arena > largest:
        raise ConfigError(
            f"the model's arena ({arena:,} B) does not fit {_called(board)}: "
            f"{arena - largest:,} B too many"
        )
    over = min(_excess(board, sizes, place) for place in _placements(bool(board.ccm)))
    raise ConfigError(
        f"the request buffers ({sizes['queue'] + sizes['request']:,} B for one input of "
        f"{input_bytes:,} B) do not fit {_called(board)} beside the arena ({arena:,} B): "
        f"{over:,} B too many"
    )


def _called(board: Board) -> str:
    lacks = bool(BOARDS[board.name].ccm) and not board.ccm
    return f"the emulated {board.name}, which lacks its CCM," if lacks else board.name


def _layouts(many: int, ccm: bool) -> Iterator[Layout]:
    """All that can be tried, the best first."""
    usual = _placements(ccm, ("arena",))
    for frames, samples in ((4, many), (4, 1), (2, 1)):
        yield from (Layout(frames, samples, place) for place in usual)
    for frames in (2, 1):
        yield from (Layout(frames, 1, place) for place in _placements(ccm))


def _placements(ccm: bool, buffers: Collection[str] = BUFFERS) -> list[tuple[str, ...]]:
    """Which of ``buffers`` may lie in the second memory: as few as possible first."""
    counts = range(len(buffers) + 1 if ccm else 1)
    return list(chain.from_iterable(combinations(buffers, count) for count in counts))


def _excess(board: Board, sizes: Mapping[str, int], in_ccm: Collection[str]) -> int:
    """The bytes that are too many if the buffers ``in_ccm`` lie there."""
    inside = sum(sizes[name] for name in in_ccm)
    outside = sum(sizes.values()) - inside + _STACK_BYTES + _FIXED_BYTES
    return max(0, inside - board.ccm) + max(0, outside - board.ram)


def _sizes(layout: Layout, arena: int, input_bytes: int, output_bytes: int) -> dict[str, int]:
    body = max(layout.max_samples * input_bytes, 64) + 12
    line = body + body // 254 + 3
    answer = layout.max_samples * output_bytes + 1024
    return {"arena": arena, "queue": layout.frames_in_flight * line, "request": body + answer}
