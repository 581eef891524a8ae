"""Quantizes a module and writes it as C: once with CMSIS-NN for the board, once portable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder import adapted
from asyncinfer_drivers.cortex_m.builder.views import check_views
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.specs import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ("CompiledModel", "capture", "compile_model", "graph_digest")

#: ``TensorSpec.axes`` of the compiler's layouts, which it makes of ``NCHW``, ``NCL`` and ``NC``
_AXES = {"NHWC": (1, 2, 0), "NLC": (1, 0), "NC": ()}
#: prefix of everything the compiler generates: bknn_model_infer and so on
_NAME = "model"


@dataclass(frozen=True)
class CompiledModel:
    """The two generated programs and what they need."""

    #: for the board, with CMSIS-NN's sources
    target: Path
    #: the same arithmetic in portable C
    portable: Path
    input: TensorSpec
    output: TensorSpec
    arena_bytes: int
    constant_bytes: int
    #: a hash of the code and the constants
    digest: str
    #: the compiler's steps and tensors
    plan: Any


def capture(module: nn.Module, sample: NDArray[np.float32], name: str) -> Any:
    """The compiler's float graph of ``module``, for an input ``[1, ...]``.

    Raises ``ConfigError`` with the operator's name if the compiler does not take the module.
    """
    bakenn = adapted.load_bakenn()
    _try(module, sample, name)
    import torch

    frontend = import_module("bakenn.frontends.torch_export")
    with _refused(bakenn, name):
        example = torch.from_numpy(np.ascontiguousarray(sample))
        return frontend.capture_torch_export(module, example, name=_NAME)


def graph_digest(graph: Any) -> str:
    """A hash of all that a float graph computes: operations, shapes, constants."""
    found = hashlib.sha256(repr((graph.ops, graph.inputs, graph.outputs)).encode())
    for name, value in sorted(graph.values.items()):
        found.update(f"{name}={value!r}\0".encode())
    for name, numbers in sorted(graph.constants.items()):
        found.update(f"{name}\0".encode() + numbers.tobytes())
    return found.hexdigest()


def compile_model(
    graph: Any,
    calibration: NDArray[np.float32],
    name: str,
    folder: Path,
    counted: Callable[[int], None] = lambda done: None,
) -> CompiledModel:
    """Quantize ``graph`` on ``calibration`` ``[n, ...]`` and generate its C below ``folder``.

    ``counted`` hears how many of the inputs are done. ``ConfigError`` if the compiler refuses it.
    """
    check_views(graph, name)
    bakenn = adapted.load_bakenn()
    # per channel, linear layers would fall back to the compiler's own kernel
    granularity = bakenn.LinearWeightGranularity.PER_TENSOR
    options = bakenn.PTQOptions(linear_weight_granularity=granularity)
    target, portable = folder / "model", folder / "portable"
    with _refused(bakenn, name):
        samples = (calibration[at : at + 1] for at in range(len(calibration)))
        quantized = adapted.quantize_graph(graph, samples, options, _NAME, counted).graph
        compiled = _generate(bakenn, quantized, target, "cortex-m4", enable_cmsis_nn=True)
        _generate(bakenn, quantized, portable, None)
    plan, memory = compiled.plan, compiled.memory_report
    return CompiledModel(
        target=target,
        portable=portable,
        input=_tensor("input", plan.tensors[plan.inputs[0]].tensor_type),
        output=_tensor("output", plan.tensors[plan.outputs[0]].tensor_type),
        arena_bytes=memory.arena_bytes,
        constant_bytes=memory.emitted_constant_payload_bytes,
        digest=_digest(portable),
        plan=plan,
    )


@contextmanager
def _refused(bakenn: Any, name: str) -> Iterator[None]:
    """Makes the compiler's errors ``ConfigError`` with one line."""
    try:
        yield
    except bakenn.BakeNNError as error:
        first = str(error).partition("\n")[0].partition(";")[0]
        raise ConfigError(f"model {name!r} cannot be built for a board: {first}") from error
    except Exception as error:  # torch.export has errors of many kinds
        first = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError(f"model {name!r} cannot be exported: {first}") from error


def _try(module: nn.Module, sample: NDArray[np.float32], name: str) -> None:
    import torch

    try:
        with torch.inference_mode():
            module(torch.from_numpy(np.ascontiguousarray(sample)))
    except Exception as error:  # of whatever kind the module raises
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"model {name!r} does not take calibration inputs {list(sample.shape)}: {first}"
        ) from error


def _generate(bakenn: Any, quantized: Any, folder: Path, target: str | None, **options: Any) -> Any:
    backend = bakenn.CBackendOptions(kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, **options)
    return bakenn.compile(
        quantized, folder, model_name=_NAME, backend_options=backend, target=target
    )


def _tensor(name: str, kind: Any) -> TensorSpec:
    scale, zero_point = float(np.float32(kind.qparams.scale)), int(kind.qparams.zero_point)
    axes = _AXES[kind.layout.value]
    return TensorSpec(name, Datatype.INT8, tuple(kind.shape[1:]), scale, zero_point, axes)


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.c")):
        found.update(path.read_bytes())
    return found.hexdigest()
