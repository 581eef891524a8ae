"""Tells by its content what a model's file is, and what to do with one that is no whole model.

Nothing in a file is run for that: what is pickled is only read for the names in it.
"""

from __future__ import annotations

import itertools
import json
import logging
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import torch

from asyncinfer.errors import ConfigError

__all__ = ("HUB", "Kind", "exported_on", "kind_of", "reason_in_log", "written_by")

#: what can be loaded
Kind: TypeAlias = Literal["TorchScript", "torch.export"]

#: operations of a pickle that are looked at: the names in question come early
_MOST_OPERATIONS = 100_000
#: pickles before the object itself in what old versions of torch wrote: a number, a version, a host
_LEGACY_HEAD = 3
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
#: modules whose names stand in files of weights
_PLAIN = ("torch", "torch._utils", "torch.storage", "collections", "_codecs", "torch.nn.parameter")

_EXPORT = "export the model to a .pt2 file: torch.export.save(torch.export.export(...), file)"
_WEIGHTS = (
    "give 'module:function' instead, a function that makes the module, loads this file into it "
    "and returns it"
)
_MODULE = f"load it in a program that you trust, and {_EXPORT}; or {_WEIGHTS}"
HUB = (
    "if it is the name of a model on a hub, give 'module:function', a function that loads it "
    "from there and returns it"
)


def kind_of(path: Path) -> Kind:
    """Which of the files that can be loaded this is.

    Raises ``ConfigError`` that says what it is instead, and what to give.
    """
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, not a model's file: give a .pt2 or TorchScript file in it, or "
            "'module:function', a function that loads the folder and returns the module"
        )
    if not path.exists():
        if ".py:" in path.name:
            raise ConfigError(
                f"{path}: name the module as Python imports it, as in 'package.module:function', "
                "and see that its folder is on PYTHONPATH"
            )
        hub = "" if path.suffix or len(path.parts) > 2 or path.is_absolute() else f"; {HUB}"
        raise ConfigError(f"no such model file: {path}{hub}")
    with path.open("rb") as file:
        head = file.read(64)
        if zipfile.is_zipfile(file):
            return _kind_of_archive(path)
        raise ConfigError(f"{path} {_unlike_models(path, head, file)}")


def _kind_of_archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            if min((entry.header_offset for entry in archive.infolist()), default=0):
                raise ConfigError(f"{path} {_BROKEN}")  # the end of another archive inside it
            names = {name.partition("/")[2] or name for name in archive.namelist()}
            if "constants.pkl" in names and "data.pkl" in names:
                return "TorchScript"
            if any(name.startswith("data/aotinductor/") for name in names):
                raise ConfigError(
                    f"{path} is an AOTInductor package, whose compiled code checks neither shapes "
                    "nor sizes of batches, and is not run: give the .pt2 file of torch.export.save "
                    "that it was made of, with optimize='aot' and isolation='process'"
                )
            if "archive_format" in names or "serialized_exported_program.json" in names:
                return "torch.export"
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if pickled:
                with archive.open(pickled[0]) as file:
                    raise ConfigError(f"{path} {_pickled(file)}")
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{path} {_BROKEN} ({error})") from error
    raise ConfigError(f"{path} is neither a TorchScript nor a .pt2 file: {_EXPORT}")


_BROKEN = "is damaged or incomplete: copy or download it again, or save it again"


def _unlike_models(path: Path, head: bytes, file: IO[bytes]) -> str:
    """What is in a file that is no archive."""
    if not head:
        return "is empty: save the model again"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return (
            f"holds weights alone (safetensors): {_WEIGHTS}: "
            "module.load_state_dict(safetensors.torch.load_file(file))"
        )
    if path.suffix == ".onnx" or (head[0] == 8 and head[1] < 32 and head[2:3] == b"\x12"):
        return f"is an ONNX model, which torch does not run: {_EXPORT}"
    for start, magic, name in _OTHERS:
        if head[start : start + len(magic)] == magic:
            return f"is a {name} file, which torch does not run: {_EXPORT}"
    if head.startswith(b"PK\x03\x04"):
        return _BROKEN
    if head.startswith(b"\x80"):
        file.seek(0)
        return _legacy(file)
    return f"is neither a TorchScript nor a .pt2 file: {_EXPORT}"


#: where their first bytes stand, those, and what they are called
_OTHERS = (
    (4, b"TFL3", "TensorFlow Lite"),
    (0, b"\x89HDF\r\n\x1a\n", "Keras or HDF5"),
    (0, b"GGUF", "GGUF"),
)


def _legacy(file: IO[bytes]) -> str:
    """What is in a file that begins with a pickle: torch wrote such ones before version 1.6."""
    first = next(itertools.islice(pickletools.genops(file), 1, 2), None)
    file.seek(0)
    if first is not None and first[1] == _LEGACY_MAGIC:
        for _ in range(_LEGACY_HEAD):
            for _ in pickletools.genops(file):
                pass
    return _pickled(file)


def _pickled(file: IO[bytes]) -> str:
    """What a pickle holds, by the names in it: weights, or objects with their classes."""
    try:
        classes = [name for name in _classes(file) if name[0] not in _PLAIN]
    except Exception:  # pickletools has its own reasons
        return _BROKEN
    foreign = next((name for name in classes if name[0].partition(".")[0] != "numpy"), None)
    if foreign is None:
        return (
            f"holds weights alone, without their module: {_WEIGHTS}: "
            "module.load_state_dict(torch.load(file, weights_only=True))"
        )
    return (
        f"is a pickled object of the class {'.'.join(foreign)}, which runs whatever is in it when "
        f"it is loaded, and is not loaded: {_MODULE}"
    )


def _classes(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """The module and the name of each object that a pickle would import."""
    texts = ["", ""]
    for operation, argument, _ in itertools.islice(pickletools.genops(file), _MOST_OPERATIONS):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif operation.name == "STACK_GLOBAL":
            yield texts[-2], texts[-1]
        elif isinstance(argument, str):
            texts = [texts[-1], argument]


def exported_on(path: Path) -> set[str]:
    """The types of the devices that an exported program names: ``cpu``, ``cuda``, ..."""
    found = set[str]()
    for document in _documents(path):
        stack = [document]
        while stack:
            part = stack.pop()
            if isinstance(part, dict):
                if isinstance(part.get("type"), str) and {*part} == {"type", "index"}:
                    found.add(part["type"])
                stack += part.values()
            elif isinstance(part, list):
                stack += part
    return found


def written_by(path: Path) -> str:
    """Which versions an exported program's file says it was written with; for people."""
    for document in _documents(path):
        schema = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(schema, dict):
            torch_version = document.get("torch_version", "another version")
            number = f"{schema.get('major')}.{schema.get('minor')}"
            return f"it was written by torch {torch_version} in version {number} of the format"
    return ""


def _documents(path: Path) -> Iterator[Any]:
    with suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield json.loads(archive.read(name))


@dataclass
class _Reason(logging.Filter):
    """Keeps the error that torch only logs, and its traceback out of the log."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or record.exc_info[1] is None:
            return True
        self.error = record.exc_info[1]
        return False


@contextmanager
def reason_in_log() -> Iterator[_Reason]:
    """Around ``torch.export.load``, which tells in its log why it failed. One at a time."""
    reason, log = _Reason(), logging.getLogger(torch.export.__name__)
    log.addFilter(reason)
    try:
        yield reason
    finally:
        log.removeFilter(reason)
