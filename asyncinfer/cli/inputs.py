"""The inputs of ``asyncinfer run``: a built-in set, files, globs, an array, standard input."""

from __future__ import annotations

import asyncio
import glob
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from asyncinfer.cli.tools import optional
from asyncinfer.errors import ConfigError, InputError
from asyncinfer.model import Deferred, InputSet, Model, builtin
from asyncinfer.registry import did_you_mean, model_names

__all__ = ("Inputs", "Named", "collect", "read_picture")

#: the name an input is reported under, and what the driver gets
Named: TypeAlias = tuple[str, Any]

_CHUNK = 65536
#: bytes of one line of standard input: no path is as long
MAX_LINE = 65536
#: more would take over half a gigabyte as float32: refused before decoding
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Part:
    """Inputs of one kind, made one by one when they are asked for."""

    count: int
    get: Callable[[int], Named]
    targets: Sequence[Any] | None = None

    def __iter__(self) -> Iterator[Named]:
        return (self.get(index) for index in range(self.count))


@dataclass(frozen=True)
class Inputs:
    """All inputs of a run, in order; endless or of unknown number if ``lines`` is set."""

    parts: Sequence[Part] = ()
    lines: AsyncIterator[Named] | None = None
    #: how many of the first ones are left out
    skip: int = 0

    @property
    def count(self) -> int | None:
        """How many there are, if that is known."""
        return None if self.lines else sum(part.count for part in self.parts) - self.skip

    def targets(self) -> Iterator[Any] | None:
        """The right results in order, if they are known for all inputs."""
        known = [part.targets for part in self.parts if part.targets is not None]
        if self.lines or len(known) != len(self.parts):
            return None
        return islice((target for targets in known for target in targets), self.skip, None)

    def __iter__(self) -> Iterator[Named]:
        """All but the ``lines``."""
        return islice((named for part in self.parts for named in part), self.skip, None)


def collect(texts: Sequence[str], model: Model | None) -> Inputs:
    """What ``texts`` name, in order; without any, the model's own inputs."""
    if not texts:
        if model is None or model.inputs is None:
            raise ConfigError("no inputs: name files, a .npy array, an input set, or - for a list")
        return Inputs([_from_set(model.inputs)])
    if "-" in texts:
        if len(texts) > 1:
            raise ConfigError("- (standard input) cannot be mixed with other inputs")
        return Inputs(lines=Lines(0))
    return Inputs([_part(text, model) for text in texts])


def read_picture(path: Path) -> Any:
    """A picture as float32 [3, h, w] from 0 to 1, for models that bring no steps of their own."""
    numpy = optional("numpy", "reading pictures")
    with optional("PIL.Image", "reading pictures").open(path) as image:
        if image.format == "EPS":
            raise InputError(f"{path}: EPS is a program, not a picture")
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{path}: more than {MAX_PIXELS:,} pixels")
        pixels = numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255
    return numpy.ascontiguousarray(pixels.transpose(2, 0, 1))


def _part(text: str, model: Model | None) -> Part:
    path = Path(text).expanduser()
    if path.exists():
        return _from_array(path) if path.suffix == ".npy" else _from_files([path])
    if glob.has_magic(text):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207  # absolute patterns too
        found = sorted(map(Path, matches))
        if not found:
            raise ConfigError(f"no file matches {text!r}")
        return _from_files(found)
    if model and model.inputs and text == model.name:
        return _from_set(model.inputs)
    if text in model_names():
        return _from_set(builtin(text).inputs())
    if not path.suffix and path.name == text:
        raise ConfigError(f"no file or input set {text!r}; {did_you_mean(text, model_names())}")
    return _from_files([path])  # its task will fail, the others will not


def _from_set(inputs: InputSet) -> Part:
    def get(index: int) -> Named:
        return str(inputs.names[index]), Deferred(inputs, index)

    return Part(len(inputs.names), get, inputs.targets)


def _from_files(paths: Sequence[Path]) -> Part:
    return Part(len(paths), lambda index: (str(paths[index]), paths[index]))


def _from_array(path: Path) -> Part:
    """Rows of an array that stays in its file: only those that are run are read."""
    load = optional("numpy.lib.format", "reading .npy arrays").open_memmap
    try:  # not numpy.load: it opens archives and pickles too
        rows = load(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read as a .npy array: {error}") from error
    if rows.ndim == 0:
        raise ConfigError(f"{path}: holds a single number, not one row per input")
    return Part(len(rows), lambda index: (f"{path}[{index}]", rows[index]))


class Lines:
    """Paths, one a line, from a file descriptor; read in a thread, no further than asked for.

    ``os.read`` in a thread of its own rather than ``sys.stdin`` in a shared one: what waits for a
    line that never comes must not keep the program from ending.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._rest = b""
        self._ended = False

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> Named:
        while not self._lines and not self._ended:
            self._take(await self._read())
        if not self._lines:
            raise StopAsyncIteration
        line = self._lines.popleft()
        return line, Path(line)

    def _take(self, chunk: bytes) -> None:
        self._ended = not chunk
        *lines, self._rest = (self._rest + (chunk or b"\n")).split(b"\n")
        decoded = (os.fsdecode(line.strip()) for line in lines)
        self._lines.extend(line for line in decoded if line)
        if len(self._rest) > MAX_LINE:
            raise ConfigError(f"standard input: a line of more than {MAX_LINE:,} bytes is no path")

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def set_result(chunk: bytes) -> None:
            if not done.done():
                done.set_result(chunk)

        def read() -> None:
            try:
                chunk = os.read(self._descriptor, _CHUNK)
            except OSError:  # closed: no more lines
                chunk = b""
            try:
                loop.call_soon_threadsafe(set_result, chunk)
            except RuntimeError:  # the loop has ended meanwhile
                return

        threading.Thread(target=read, name="stdin", daemon=True).start()
        return await done
