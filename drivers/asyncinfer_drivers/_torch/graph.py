"""Graphs of TorchScript: all that uses it, so that something else can take its place."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ("Refused", "frozen")

#: warnings are watched while a call is traced, and their filters belong to all threads
_ONE_AT_A_TIME = threading.Lock()

#: functions that make a number of a tensor, as which a size is traced
_TO_NUMBERS = frozenset(("__bool__", "__complex__", "__float__", "__index__", "__int__", "item"))


class Refused(Exception):
    """This form cannot be made of this model, or is not the same as the model; says why."""


def frozen(module: nn.Module, example: torch.Tensor, *, onednn: bool) -> Callable[..., Any]:
    """The graph of ``module``, weights folded in: one release of the interpreter's lock a call.

    It is freed with what is returned. Raises ``Refused``, or whatever torch raises.
    """
    jit: Any = torch.jit  # untyped
    with _ONE_AT_A_TIME, torch.no_grad(), _strictly() as warned:
        if isinstance(module, jit.ScriptModule):
            graph, structure = _copy(module), None
        else:
            with _Sizes():
                _traced(module, example)
            warned.clear()
            graph, structure = _traced(module, example)
        graph = jit.freeze(graph.eval())
        if onednn:
            graph = jit.optimize_for_inference(graph)
    if structure is None:
        return lambda inputs: graph(inputs)
    if structure.is_leaf():
        return lambda inputs: graph(inputs)[0]
    return lambda inputs: pytree.tree_unflatten(graph(inputs), structure)


def _copy(module: Any) -> Any:
    """The same program, branches and all, in a compilation unit of its own."""
    jit: Any = torch.jit
    buffer = io.BytesIO()
    jit.save(module, buffer)
    buffer.seek(0)
    return jit.load(buffer)


def _traced(module: nn.Module, example: torch.Tensor) -> tuple[Any, pytree.TreeSpec]:
    """One call as a program whose output is a flat tuple, and the structure of the output.

    ``torch.jit.trace`` puts its programs into one compilation unit that lives as long as the
    process, and whatever freezing makes of them beside them. In a unit of its own a program goes
    with the last that uses it. Weights are attributes of it: the model's own, not copied.
    """
    structures: list[pytree.TreeSpec] = []

    def call(inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves, structure = pytree.tree_flatten(module(inputs))
        if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise Refused("its output holds more than tensors")
        structures.append(structure)
        return tuple(leaves)

    native: Any = torch._C
    script = native.ScriptModule("asyncinfer.Graph", native.CompilationUnit(), True)
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for index, tensor in enumerate(weights.values()):
        script._register_attribute(f"weight{index}", native.TensorType.get(), tensor)
    script._create_method_from_trace(
        "forward", call, (example,), lambda _: "", True, False, ["inputs"], False
    )
    jit: Any = torch.jit
    return jit._recursive.wrap_cpp_module(script), structures[-1]


class _Sizes(TorchFunctionMode):
    """Raises ``Refused`` if Python code looks at sizes, which are tensors while a call is traced.

    The tracer warns of it, and a model may have its warnings silenced. Under this mode torch leaves
    out some of its fast ways, so that what is traced here is of no other use.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _TO_NUMBERS:
            raise Refused(f"control flow: it looks at sizes ({func.__name__})")
        return func(*args, **(kwargs or {}))


@contextmanager
def _strictly() -> Iterator[list[str]]:
    """Raise ``Refused`` if the tracer warns: of Python code that looks at values or sizes.

    Gives the list of what it has warned of so far.

    ``warnings.catch_warnings`` would restore, in the end, what another thread has changed since.
    """
    seen, shown, here = list[str](), warnings.showwarning, threading.get_ident()

    def show(message: Any, category: Any, *args: Any, **options: Any) -> None:
        if category is TracerWarning and threading.get_ident() == here:
            seen.append(str(message))
        else:
            shown(message, category, *args, **options)

    filters = warnings.filters
    old = list(filters)
    for category in (DeprecationWarning, FutureWarning):  # torch's own, of TorchScript
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=category)
    warnings.filterwarnings("always", category=TracerWarning)
    own = [item for item in filters if item not in old]
    warnings.showwarning = show
    try:
        yield seen
        if warnings.showwarning is not show or any(item not in warnings.filters for item in own):
            raise Refused("warnings were changed while it was traced")
    finally:
        here = 0  # should anything still hold `show`, it only passes warnings on
        if warnings.showwarning is show:
            warnings.showwarning = shown
        for item in own:
            if item in filters:
                filters.remove(item)  # type: ignore[attr-defined]
    if seen:
        raise Refused(f"control flow: {seen[0].partition('. ')[0]}")
