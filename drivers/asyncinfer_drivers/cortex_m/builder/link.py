"""Compiles the firmware with a model and links it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from asyncinfer_drivers.cortex_m.builder import toolchain
from asyncinfer_drivers.cortex_m.builder.boards import Board
from asyncinfer_drivers.cortex_m.builder.compile import CompiledModel
from asyncinfer_drivers.cortex_m.builder.layout import BUFFERS, Layout
from asyncinfer_drivers.cortex_m.builder.sources import firmware_sources
from asyncinfer_drivers.cortex_m.specs import BoardSpec

__all__ = ("link_firmware", "write_configuration")

_MACHINE_FLAGS = ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")
_CODE_FLAGS = ("-O3", "-g", "-ffunction-sections", "-fdata-sections")
#: the compiler's own functions for memory, not byte-wise loops
_CMSIS = "-DBAKENN_CMSIS_NN_BUILTIN_MEMORY"
#: bytes at the start of HELLO_REPLY that the C program writes itself: protocol, limits, counters
_FIXED_HELLO = 16


def write_configuration(
    folder: Path, board: str, model_id: str, model: CompiledModel, layout: Layout
) -> None:
    """Write what the C program includes: its limits, and who it is, as HELLO_REPLY has it."""
    spec = BoardSpec(board, f"asyncinfer {_version()}", model_id, (model.input,), model.outputs)
    identity = spec.to_bytes()[_FIXED_HELLO:]
    macros = {
        "AI_FRAMES_IN_FLIGHT": f"{layout.frames_in_flight}u",
        "AI_MAX_SAMPLES": f"{layout.max_samples}u",
        "AI_IDENTITY_BYTES": f"{len(identity)}u",
    }
    lines = [f"#define {name} {value}\n" for name, value in macros.items()]
    (folder / "model_config.h").write_text("".join(lines))
    numbers = ", ".join(map(str, identity))
    (folder / "model_identity.c").write_text(
        f'#include "model.h"\n\nconst uint8_t model_identity[AI_IDENTITY_BYTES] = {{{numbers}}};\n'
    )
    places = {name.upper(): layout.memory(name) for name in BUFFERS}
    aliases = (f'REGION_ALIAS("{name}", {memory})\n' for name, memory in places.items())
    (folder / "arena.ld").write_text("".join(aliases))


def link_firmware(
    board: Board, folder: Path, model: CompiledModel, elf: Path, defines: Sequence[str] = ()
) -> None:
    """Compile ``folder``'s configuration with the firmware's sources into ``elf`` and ``.bin``."""
    root, objects = firmware_sources(), folder / "objects"
    objects.mkdir()
    boards = root / "boards"
    own = [*sorted((root / "src").glob("*.c")), boards / f"{board.name}.c"]
    gcc = [toolchain.arm("gcc"), *_MACHINE_FLAGS, *_CODE_FLAGS]
    include = [f"-I{path}" for path in (root / "include", root / "src", folder, model.target)]
    macros = [f"-D{define}" for define in defines]
    identity = folder / "model_identity.c"
    toolchain.run([*gcc, *toolchain.OWN_WARNINGS, *macros, *include, "-c", *own, identity], objects)
    third = model.target / "third_party"
    include = [f"-I{path}" for path in (model.target, *third.glob("*/Include"))]
    generated = sorted(model.target.rglob("*.c"))
    toolchain.run([*gcc, "-std=c11", "-w", _CMSIS, *include, "-c", *generated], objects)
    search = [f"-L{folder}", f"-L{boards}", "-T", f"{board.name}.ld"]
    options = ["-nostartfiles", "-Wl,--gc-sections", f"-Wl,-Map={elf.with_suffix('.map')}"]
    toolchain.run([*gcc, *options, *search, *sorted(objects.glob("*.o")), "-o", elf])
    toolchain.run([toolchain.arm("objcopy"), "-O", "binary", elf, elf.with_suffix(".bin")])


def _version() -> str:
    try:
        return version("asyncinfer")
    except PackageNotFoundError:
        return "unknown"
