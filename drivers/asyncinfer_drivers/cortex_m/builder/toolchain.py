"""Runs the compilers: arm-none-eabi-gcc for boards, the host's for references and tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncinfer.errors import ConfigError

__all__ = ("OWN_WARNINGS", "Memory", "arm", "host_compiler", "kernels", "measure", "run", "version")

#: what the firmware's own files have to pass; generated code and CMSIS-NN are not ours
OWN_WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror")

_PREFIX = "arm-none-eabi-"
_REMEDY = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
_SECTION = re.compile(r"^(\.[\w.]+)\s+(\d+)\s+\d+$", re.MULTILINE)
_OVERFLOW = re.compile(r"region [`'](\w+)' overflowed by (\d+) bytes")


@dataclass(frozen=True)
class Memory:
    """What a linked firmware takes, in bytes."""

    flash: int
    #: variables, buffers, arena and stack
    ram: int


def arm(tool: str) -> str:
    """The path of one of the cross tools; ``ConfigError`` says how to get it."""
    path = shutil.which(_PREFIX + tool)
    if path is None:
        raise ConfigError(f"building a firmware needs {_PREFIX}{tool}: {_REMEDY}")
    return path


def host_compiler() -> str:
    """The computer's own C compiler."""
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return path
    raise ConfigError("the integer reference needs a C compiler: apt-get install gcc")


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a tool; its first complaint becomes a ``ConfigError``."""
    done = subprocess.run(  # noqa: S603  # a compiler, with arguments of ours
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return done.stdout
    if found := _OVERFLOW.search(done.stderr):
        raise ConfigError(f"the firmware does not fit: {found[1]} lacks {int(found[2]):,} bytes")
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    said = (lines or done.stderr.splitlines() or [f"status {done.returncode}"])[0]
    raise ConfigError(f"{Path(command[0]).name} failed: {said}")


def version() -> str:
    """The cross compiler's version."""
    return run([arm("gcc"), "-dumpfullversion"]).strip()


def measure(elf: Path) -> Memory:
    """The sizes of the sections of ``elf``."""
    sizes = {
        name: int(size) for name, size in _SECTION.findall(run([arm("size"), "-A", "-d", elf]))
    }

    def total(names: Iterable[str]) -> int:
        return sum(sizes.get(name, 0) for name in names)

    return Memory(
        flash=total((".text", ".ARM.exidx", ".data")),
        ram=total((".data", ".bss", ".noinit", ".queue", ".request", ".arena", ".stack")),
    )


def kernels(elf: Path) -> tuple[str, ...]:
    """CMSIS-NN's functions that are in ``elf``: what was compiled but not linked does not count."""
    symbols = (line.split() for line in run([arm("nm"), "--defined-only", elf]).splitlines())
    return tuple(
        sorted(name for _, kind, name in symbols if kind in "tT" and name.startswith("arm_"))
    )
