"""bakenn 1.0.0 with some of its functions replaced, in copies: the package itself stays as it is.

- **Ranges.** Its quantiser gives what precedes a ReLU the ReLU's range, which loses nothing, and
  takes Sigmoid, SiLU, HardSwish and HardSigmoid for ReLUs, as their classes derive from it. Then
  most of what they should see is cut off.
- **Speed.** It calibrates with loops of Python, many seconds for each input.
- **Padding.** It sends no convolution to CMSIS-NN that is padded by one more at its end than at its
  beginning, as TensorFlow's "same" does, though CMSIS-NN computes these.
- **Memory.** It leaves gaps in the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from asyncinfer.errors import ConfigError
from asyncinfer.registry import optional
from asyncinfer_drivers.cortex_m.builder import float_kernels
from asyncinfer_drivers.cortex_m.builder.arena import packed
from asyncinfer_drivers.cortex_m.builder.pads import centred
from asyncinfer_drivers.cortex_m.builder.rewriting import custom

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = (
    "BAKENN_VERSION",
    "evaluate",
    "evaluate_from",
    "generate",
    "load_bakenn",
    "quantize_graph",
)

#: the only version that these adaptations were made for
BAKENN_VERSION = "1.0.0"

_PTQ = "bakenn.quantization.ptq_graph"


def load_bakenn() -> Any:
    """The INT8 compiler; ``ConfigError`` if it is missing, or is another version."""
    bakenn = optional("bakenn", "building a firmware")
    if bakenn.__version__ != BAKENN_VERSION:
        raise ConfigError(
            f"building a firmware needs bakenn {BAKENN_VERSION}, not {bakenn.__version__}: "
            f"pip install 'bakenn=={BAKENN_VERSION}'"
        )
    return bakenn


def quantize_graph(
    graph: Any,
    samples: Iterable[NDArray[np.float32]],
    options: Any,
    name: str,
    counted: Callable[[int], None] = lambda done: None,
) -> Any:
    """As ``quantize_float_graph_with_report``, with right ranges; ``counted`` hears of samples."""
    done = 0

    def evaluate_one(graph: Any, sample: NDArray[np.float32]) -> Mapping[str, Any]:
        nonlocal done
        values = evaluate(graph, sample)
        done += 1
        counted(done)
        return values

    ptq = import_module(_PTQ)
    quantize = _copy(
        ptq._quantize_float_graph_impl,
        _evaluate=evaluate_one,
        _consumers=_visible_consumers,
        **custom.factories(graph),
    )
    return quantize(graph, samples, name=name, options=options)


def evaluate(graph: Any, sample: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
    """All values of a ``FloatGraph`` for one sample, the same bits as bakenn's own evaluation."""
    start, left = graph.inputs[0], list(graph.ops)
    values = _evaluate_plain(graph, graph.constants, [], sample)
    while left:
        plain = list(takewhile(lambda op: not custom.is_custom(op), left))
        values = _evaluate_plain(graph, values, plain, values[start])
        left = left[len(plain) :]
        if left:
            op = left.pop(0)
            values[op.output] = custom.evaluate_custom(op, values, graph.values[op.output].shape)
    return values


def _evaluate_plain(
    graph: Any, known: Mapping[str, Any], ops: list[Any], sample: NDArray[np.float32]
) -> dict[str, Any]:
    part = SimpleNamespace(values=graph.values, inputs=graph.inputs, constants=known, ops=ops)
    return dict(_fast_evaluate()(part, sample))


def evaluate_from(
    graph: Any, values: Mapping[str, Any], name: str, changed: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The output of ``graph`` with the value ``name`` ``changed``, if ``values`` are the others."""
    touched, later = {name}, []
    for op in graph.ops:
        if touched & {*op.inputs}:
            later.append(op)
            touched.add(op.output)
    known = {other: value for other, value in values.items() if other not in touched}
    part = SimpleNamespace(values=graph.values, inputs=(name,), constants=known, ops=later)
    output: NDArray[np.float32] = evaluate(part, changed)[graph.outputs[0]]
    return output


def generate(graph: Any, folder: Path, name: str, target: str | None, options: Any) -> Any:
    """As ``bakenn.compile``, with CMSIS-NN for padding that is ``centred``, in less memory."""
    selection = import_module("bakenn.backend.portable_c.selection")
    generator = import_module("bakenn.backend.portable_c.generator")
    select = _copy(selection.select_backend_plan, kernel_capabilities=_capabilities)
    inner = _copy(generator._generate_portable_c_into, select_backend_plan=select)
    emit = _copy(generator.generate_portable_c, _generate_portable_c_into=inner)
    lower = _copy(import_module("bakenn.plan.lower").lower_to_plan, plan_memory=_plan_memory)
    compiler = import_module("bakenn.compiler")
    compile_graph = _copy(compiler.compile, lower_to_plan=lower, generate_portable_c=emit)
    return compile_graph(graph, folder, model_name=name, backend_options=options, target=target)


def _plan_memory(**given: Any) -> Any:
    return packed(import_module("bakenn.plan.memory").plan_memory(**given))


def _capabilities(step: Any, plan: Any, options: Any) -> Any:
    """Which kernels can do a step; of a convolution, what its padding really needs."""
    offered = import_module("bakenn.backend.portable_c.selection").kernel_capabilities
    if type(step).__name__ not in ("Conv2DStep", "DepthwiseConv2DStep"):
        return offered(step, plan, options)
    shape = plan.constants[step.weight].shape
    kernel = shape[1:3] if len(shape) == 4 else shape[:2]  # OHWI, or HWO if depthwise
    fits = centred(step.padding, kernel)
    judge = _copy(offered.dispatch(type(step)), _symmetric_padding=lambda padding: fits)
    return judge(step, plan, options)


@cache
def _fast_evaluate() -> Callable[..., Any]:
    return _copy(
        import_module(_PTQ)._evaluate,
        _conv2d=float_kernels.conv2d,
        _conv_transpose2d=float_kernels.conv_transpose2d,
        _pool2d=float_kernels.pool2d,
        _resize2d=float_kernels.resize2d,
    )


def _visible_consumers(graph: Any) -> Mapping[str, tuple[object, ...]]:
    """Who reads a value, without the activations that only look like a ReLU."""
    ptq = import_module(_PTQ)
    relus = (ptq.FloatReLUOp, ptq.FloatReLU6Op)

    def seen(reader: object) -> object:
        return None if isinstance(reader, relus) and type(reader) not in relus else reader

    readers: Mapping[str, tuple[object, ...]] = ptq._consumers(graph)
    return {value: tuple(map(seen, known)) for value, known in readers.items()}


def _copy(function: Any, **names: object) -> Callable[..., Any]:
    """``function`` with other meanings for some of the global names that it uses."""
    world = {**function.__globals__, **names}
    made = FunctionType(function.__code__, world, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made
