"""The compiler's integer arithmetic as a library of this computer: what a board must answer."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from asyncinfer.errors import InputError
from asyncinfer_drivers.cortex_m.builder import toolchain
from asyncinfer_drivers.cortex_m.specs import TensorSpec

__all__ = ("Int8", "IntegerReference", "compile_reference")

Int8: TypeAlias = NDArray[np.int8]

_ALIGNMENT = 16


class IntegerReference:
    """Callable: int8 ``[n, *input shape]`` to int8 ``[n, *output shape]``, bit for bit.

    It is the portable C of the same plan, without CMSIS-NN. Calls from several threads are safe.
    """

    def __init__(self, library: Path, source: TensorSpec, target: TensorSpec, arena: int) -> None:
        self.library = library
        self._source = source
        self._target = target
        self._arena = arena
        self._infer = ctypes.CDLL(str(library)).bknn_model_infer
        self._infer.restype = None
        self._infer.argtypes = [ctypes.c_void_p] * 3

    def __call__(self, inputs: Int8) -> Int8:
        """Run all of ``inputs``; ``InputError`` if they are of another shape or type."""
        if inputs.dtype != np.int8 or inputs.shape[1:] != self._source.shape:
            raise InputError(
                f"the model takes int8 [n, {', '.join(map(str, self._source.shape))}], "
                f"not {inputs.dtype} {list(inputs.shape)}"
            )
        rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
        results = np.empty((len(inputs), math.prod(self._target.shape)), dtype=np.int8)
        space = np.empty(self._arena + _ALIGNMENT, dtype=np.uint8)
        arena = space.ctypes.data + -space.ctypes.data % _ALIGNMENT if self._arena else None
        for row, result in zip(rows, results, strict=True):
            self._infer(arena, row.ctypes.data, result.ctypes.data)
        return results.reshape(len(inputs), *self._target.shape)


def compile_reference(generated: Path, library: Path) -> None:
    """Compile the portable C in ``generated`` into ``library``."""
    sources = sorted(generated.glob("*.c"))
    command = [toolchain.host_compiler(), "-std=c11", "-O2", "-fPIC", "-shared"]
    toolchain.run([*command, f"-I{generated}", *sources, "-o", library])
