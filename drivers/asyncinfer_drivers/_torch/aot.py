"""AOTInductor: a module compiled to a shared library, which is kept for the next time."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncinfer_drivers._torch.exported import EXPORTING

__all__ = ("Cache", "cached", "compiled", "possible")


@dataclass(frozen=True)
class Cache:
    """Where compiled models are kept, and what they are compiled for."""

    folder: Path
    #: tasks in the largest batch
    max_batch: int
    #: intra-op threads, which the compiled code has fixed
    threads: int

    @classmethod
    def of_user(cls, max_batch: int, threads: int) -> Cache:
        """In the user's cache directory (``XDG_CACHE_HOME``)."""
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or base
        return cls(Path(base) / "asyncinfer" / "torch", max_batch, threads)


def possible() -> bool:
    """Whether there is a C++ compiler to compile with."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return any(name and shutil.which(name) for name in names)


def cached(module: nn.Module, example: torch.Tensor, cache: Cache) -> bool:
    """Whether it was compiled before, and ``compiled`` only has to load it."""
    return _plain(module) and _file(module, example, cache).is_file()


def compiled(
    module: nn.Module, example: torch.Tensor, cache: Cache
) -> Callable[[torch.Tensor], Any]:
    """``module`` as machine code, for batches of up to ``cache.max_batch``.

    Compiling takes 10 to 60 s, loading what is there milliseconds. The file is named by a hash of
    weights, source code, shape, dtype, threads, processor and torch's version.
    """
    with _quietly():
        return _compiled(module, example, cache)


def _compiled(
    module: nn.Module, example: torch.Tensor, cache: Cache
) -> Callable[[torch.Tensor], Any]:
    if not _plain(module):
        raise ValueError("quantised modules are not compiled")
    inductor: Any = importlib.import_module("torch._inductor")
    file = _file(module, example, cache)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            built = Path(folder, "model.pt2")
            _build(inductor, module, example, cache, built)
            built.replace(file)  # atomic, should another process build the same
    runner = inductor.aoti_load_package(str(file))
    return lambda inputs: runner(inputs.contiguous())


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings of its own old code, which are errors in strict programs."""
    filters = warnings.filters
    old = list(filters)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, message=".*(torch|LeafSpec)")
    own = [item for item in filters if item not in old]
    try:
        yield
    finally:  # remove only ours: another thread may have added some meanwhile
        for item in own:
            if item in filters:
                filters.remove(item)  # type: ignore[attr-defined]


def _build(
    inductor: Any, module: nn.Module, example: torch.Tensor, cache: Cache, file: Path
) -> None:
    if cache.max_batch > 1:
        shapes: Any = ({0: torch.export.Dim("batch", min=1, max=cache.max_batch)},)
        if len(example) < 2:
            example = torch.cat([example] * 2)  # torch.export takes a size of 1 for a fixed one
    else:
        shapes = None
    with torch.no_grad():
        with EXPORTING:
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        options = {"freezing": True, "cpp.threads": cache.threads}
        inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


def _plain(module: nn.Module) -> bool:
    """Whether all it keeps are tensors of bytes: quantised modules have dtypes and scales too."""
    return all(
        isinstance(value, torch.Tensor) and not value.is_quantized
        for value in module.state_dict().values()
    )


def _file(module: nn.Module, example: torch.Tensor, cache: Cache) -> Path:
    digest = hashlib.sha256()
    facts = [torch.__version__, torch.backends.cpu.get_cpu_capability(), example.dtype]
    facts += [*example.shape[1:], *example.stride()[1:], cache.max_batch, cache.threads]
    for part in (*map(str, facts), repr(module), *_sources(module), *_settings(module)):
        digest.update(part.encode() + b"\0")
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return cache.folder / f"{digest.hexdigest()[:32]}.pt2"


def _sources(module: nn.Module) -> Iterator[str]:
    """The code of each class in it that is not torch's own."""
    kinds = {type(part) for part in module.modules()}
    for kind in sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        if not kind.__module__.startswith("torch.nn."):
            yield _source(kind)


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return f"{thing.__module__}.{thing.__qualname__}"


def _settings(module: nn.Module) -> Iterator[str]:
    """The plain values and the functions among its attributes, which its code may go by."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, bool | int | float | str | tuple):
                yield f"{path}.{name}={value!r}"
            elif inspect.isroutine(value):
                yield f"{path}.{name}={_source(value)}"
