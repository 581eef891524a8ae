"""Quantizes a module and writes it as C: once with CMSIS-NN for the board, once portable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer.errors import ConfigError
from asyncinfer.registry import optional
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.specs import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ("CompiledModel", "compile_model")

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


def compile_model(
    module: nn.Module, calibration: NDArray[np.float32], name: str, folder: Path
) -> CompiledModel:
    """Quantize ``module`` on ``calibration`` ``[n, ...]`` and generate its C below ``folder``.

    Raises ``ConfigError`` with the operator's name if the compiler does not take the module.
    """
    bakenn = optional("bakenn", "building a firmware")
    _try(module, calibration[:1], name)
    target, portable = folder / "model", folder / "portable"
    try:
        compiled = _generate(bakenn, module, calibration, target)
        options = bakenn.CBackendOptions(kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY)
        bakenn.compile(compiled.graph, portable, model_name=_NAME, backend_options=options)
    except bakenn.BakeNNError as error:
        first = str(error).partition("\n")[0].partition(";")[0]
        raise ConfigError(f"model {name!r} cannot be built for a board: {first}") from error
    except Exception as error:  # torch.export has errors of many kinds
        first = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError(f"model {name!r} cannot be exported: {first}") from error
    plan, memory = compiled.plan, compiled.memory_report
    return CompiledModel(
        target=target,
        portable=portable,
        input=_tensor("input", plan.tensors[plan.inputs[0]].tensor_type),
        output=_tensor("output", plan.tensors[plan.outputs[0]].tensor_type),
        arena_bytes=memory.arena_bytes,
        constant_bytes=memory.emitted_constant_payload_bytes,
        digest=_digest(portable),
    )


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


def _generate(bakenn: Any, module: nn.Module, calibration: Any, folder: Path) -> Any:
    import torch

    samples = torch.from_numpy(np.ascontiguousarray(calibration))
    return bakenn.compile_torch_ptq(
        module,
        samples[:1],
        [samples[at : at + 1] for at in range(len(samples))],
        folder,
        name=_NAME,
        target="cortex-m4",
        backend_options=bakenn.CBackendOptions(
            kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True
        ),
        # per channel, linear layers would fall back to the compiler's own kernel
        ptq_options=bakenn.PTQOptions(
            linear_weight_granularity=bakenn.LinearWeightGranularity.PER_TENSOR
        ),
    )


def _tensor(name: str, kind: Any) -> TensorSpec:
    scale, zero_point = float(np.float32(kind.qparams.scale)), int(kind.qparams.zero_point)
    return TensorSpec(name, Datatype.INT8, tuple(kind.shape[1:]), scale, zero_point)


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.c")):
        found.update(path.read_bytes())
    return found.hexdigest()
