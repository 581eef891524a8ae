"""Quantizes a module and writes it as C: once with CMSIS-NN for the board, once portable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder import adapted
from asyncinfer_drivers.cortex_m.builder.pads import fold_pads
from asyncinfer_drivers.cortex_m.builder.remedies import (
    call_remedy,
    compiler_remedy,
    export_remedy,
    quantised_before,
)
from asyncinfer_drivers.cortex_m.builder.rewriting.convert import Converted, Port, convert
from asyncinfer_drivers.cortex_m.builder.rewriting.program import Program, export
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import Refusal
from asyncinfer_drivers.cortex_m.builder.steady import memory_of
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.host_steps import known, named
from asyncinfer_drivers.cortex_m.specs import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ("Captured", "CompiledModel", "capture", "compile_model", "graph_digest")

#: prefix of everything the compiler generates: bknn_model_infer and so on
_NAME = "model"
#: outputs that a board can count, and bytes of an output's name
_MOST_OUTPUTS = _LONGEST_NAME = 255
#: bytes about outputs in the first answer of a board, of which a driver takes 4,096 in all
_MOST_TOLD = 3584
_REPORT = "please report this model"
#: how far the float graph may be from the module, beside the largest output
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CompiledModel:
    """The two generated programs and what they need."""

    #: for the board, with CMSIS-NN's sources
    target: Path
    #: the same arithmetic in portable C
    portable: Path
    input: TensorSpec
    #: in the order in which they follow one another in an answer
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int
    constant_bytes: int
    #: a hash of the code and the constants
    digest: str
    #: the compiler's steps and tensors
    plan: Any


@dataclass(frozen=True)
class Captured:
    """A module in the compiler's operators."""

    #: the exported module
    program: Program
    #: the compiler's float graph, and how its input and outputs lie
    converted: Converted

    @property
    def graph(self) -> Any:
        """The float graph."""
        return self.converted.graph

    @property
    def on_host(self) -> tuple[str, ...]:
        """What is left to the host and no driver does, of each output that has such."""
        pairs = zip(self.program.results, self.converted.outputs, strict=True)
        return tuple(
            f"output{result.path}: {', '.join(result.host)}"
            for result, port in pairs
            if not known(result.host, len(port.shape))
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        """Where each output is in what the module returns, and what drivers do with it."""
        pairs = zip(self.program.results, self.converted.outputs, strict=True)
        return tuple(
            named(
                f"output{result.path}", result.host if known(result.host, len(port.shape)) else ()
            )
            for result, port in pairs
        )

    def digest(self) -> str:
        """A hash of all that the board computes, and of what goes in and out."""
        ports = self.converted.input, self.converted.outputs, self.on_host
        names = self.output_names
        found = hashlib.sha256(f"{graph_digest(self.graph)} {ports!r} {names!r}".encode())
        return found.hexdigest()

    def samples(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inputs ``[n, ...]`` of the module as those of the float graph."""
        port = self.converted.input
        shape = self.graph.values[port.name].shape
        board = port.to_board(inputs)
        if len(shape) == 2:
            return np.ascontiguousarray(board.reshape(-1, shape[1]))
        last = board.reshape(-1, *shape[2:], shape[1])
        return np.ascontiguousarray(np.moveaxis(last, -1, 1))

    def right(self, sample: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What the module has for each output, for ``[1, ...]``, in the board's order of axes."""
        import torch

        tensors = self.program.board_part(torch.from_numpy(np.ascontiguousarray(sample)))
        return [
            port.to_board(tensor.float().numpy().reshape(1, *port.shape))
            for port, tensor in zip(self.converted.outputs, tensors, strict=True)
        ]


def capture(module: nn.Module, sample: NDArray[np.float32], name: str) -> Captured:
    """``module`` in the compiler's operators, for an input ``[1, ...]``.

    Raises ``ConfigError`` with the operator, its layer and a remedy if there is no way.
    """
    bakenn = adapted.load_bakenn()
    _try(module, sample, name)
    import torch

    example = torch.from_numpy(np.ascontiguousarray(sample))
    try:
        with _refused(bakenn, name):
            program = _exported(module, example, name)
            converted = convert(program, _NAME)
            graph = fold_pads(converted.graph)
            captured = Captured(program, replace(converted, graph=graph))
        _check_names(captured)
    except Refusal as refusal:
        raise ConfigError(f"model {name!r} cannot be built for a board: {refusal}") from refusal
    _check_conversion(captured, sample, name)
    return captured


def _exported(module: nn.Module, example: Any, name: str) -> Program:
    try:
        return export(module, example)
    except Refusal:
        raise
    except Exception as error:  # torch.export has errors of many kinds
        first = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
        remedy = export_remedy(module, error)
        raise ConfigError(f"model {name!r} cannot be exported: {first}: {remedy}") from error


def _check_names(captured: Captured) -> None:
    """Refuse outputs that a board cannot tell of in HELLO_REPLY."""
    names, ports = captured.output_names, captured.converted.outputs
    if len(names) > _MOST_OUTPUTS:
        raise Refusal(f"it returns {len(names)} tensors, more than {_MOST_OUTPUTS}: join some")
    for name in names:
        if len(name.encode()) > _LONGEST_NAME:
            raise Refusal(
                f"an output is called {name[:40]}..., which takes more than {_LONGEST_NAME} bytes: "
                "take shorter keys"
            )
    pairs = zip(names, ports, strict=True)
    told = [TensorSpec(name, Datatype.INT8, port.board_shape).to_bytes() for name, port in pairs]
    if (size := sum(map(len, told))) > _MOST_TOLD:
        raise Refusal(
            f"the names and shapes of its {len(names)} results take {size:,} bytes, more than "
            f"{_MOST_TOLD:,}: take shorter keys, or join some results"
        )


def _check_conversion(captured: Captured, sample: NDArray[np.float32], name: str) -> None:
    """Compare the float graph with the module: a rule that is wrong must not build anything."""
    values = adapted.evaluate(captured.graph, captured.samples(sample))
    found = values[captured.graph.outputs[0]]
    board = np.moveaxis(found, 1, -1) if found.ndim > 2 else found
    right = np.concatenate([part.ravel() for part in captured.right(sample)])
    error = float(np.abs(board.ravel() - right).max())
    if not error <= _TOLERANCE * max(1e-6, float(np.abs(right).max())):
        narrow = captured.program.narrow
        remedy = f"it computes in {narrow}: make it float32, float()" if narrow else _REPORT
        raise ConfigError(
            f"model {name!r} cannot be built for a board: in its operators an output is off by "
            f"{error:.3g}; {remedy}"
        )


def graph_digest(graph: Any) -> str:
    """A hash of all that a float graph computes: operations, shapes, constants."""
    found = hashlib.sha256(repr((graph.ops, graph.inputs, graph.outputs)).encode())
    for name, value in sorted(graph.values.items()):
        found.update(f"{name}={value!r}\0".encode())
    for name, numbers in sorted(graph.constants.items()):
        found.update(f"{name}\0".encode() + numbers.tobytes())
    return found.hexdigest()


def compile_model(
    captured: Captured,
    calibration: NDArray[np.float32],
    name: str,
    folder: Path,
    counted: Callable[[int], None] = lambda done: None,
) -> CompiledModel:
    """Quantize a module on ``calibration`` ``[n, ...]`` and generate its C below ``folder``.

    ``counted`` hears how many of the inputs are done. ``ConfigError`` if the compiler refuses it.
    """
    bakenn = adapted.load_bakenn()
    # per channel, linear layers would fall back to the compiler's own kernel
    granularity = bakenn.LinearWeightGranularity.PER_TENSOR
    options = bakenn.PTQOptions(linear_weight_granularity=granularity)
    target, portable = folder / "model", folder / "portable"
    with _refused(bakenn, name):
        given = captured.samples(calibration)
        samples = (given[at : at + 1] for at in range(len(given)))
        quantized = adapted.quantize_graph(captured.graph, samples, options, _NAME, counted).graph
        compiled = _generate(bakenn, quantized, target, "cortex-m4", enable_cmsis_nn=True)
        _generate(bakenn, quantized, portable, None)
    plan, memory = compiled.plan, compiled.memory_report
    return CompiledModel(
        target=target,
        portable=portable,
        input=_tensor("input", plan, captured.converted.input),
        outputs=tuple(
            _tensor(name, plan, port)
            for name, port in zip(captured.output_names, captured.converted.outputs, strict=True)
        ),
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
        text = ": ".join(filter(None, (first, compiler_remedy(first))))
        raise ConfigError(f"model {name!r} cannot be built for a board: {text}") from error
    except (ConfigError, Refusal):
        raise
    except Exception as error:  # torch.export has errors of many kinds
        first = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError(f"model {name!r} cannot be exported: {first}") from error


def _try(module: nn.Module, sample: NDArray[np.float32], name: str) -> None:
    import torch

    try:
        with torch.inference_mode():
            keeps = memory_of(module, torch.from_numpy(np.ascontiguousarray(sample)))
    except Exception as error:  # of whatever kind the module raises
        first = str(error).strip().partition("\n")[0]
        kinds = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
        if remedy := call_remedy(error, first):
            first += f": {remedy}"
        if other := next((kind for kind in kinds if kind is not torch.float32), None):
            first += f"; it has weights of {other}: make them torch.float32, float()"
        raise ConfigError(
            f"model {name!r} does not take calibration inputs {list(sample.shape)}: {first}"
        ) from error
    if keeps:
        keeps = quantised_before(module) or keeps
        raise ConfigError(f"model {name!r} cannot be built for a board: {keeps}")


def _generate(bakenn: Any, quantized: Any, folder: Path, target: str | None, **options: Any) -> Any:
    backend = bakenn.CBackendOptions(kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, **options)
    return adapted.generate(quantized, folder, _NAME, target, backend)


def _tensor(name: str, plan: Any, port: Port) -> TensorSpec:
    scale = plan.tensors[port.name].tensor_type.qparams
    numbers = float(np.float32(scale.scale)), int(scale.zero_point)
    axes = () if port.axes == tuple(range(len(port.axes))) else port.axes
    return TensorSpec(name, Datatype.INT8, port.board_shape, *numbers, axes)


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.c")):
        found.update(path.read_bytes())
    return found.hexdigest()
