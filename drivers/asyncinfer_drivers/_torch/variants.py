"""Faster forms of a module. Each is made of a copy; none is checked here."""

from __future__ import annotations

import copy
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.jit._trace import TracerWarning
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

from asyncinfer_drivers._torch import aot

__all__ = ("STEPS", "Forward", "Plan", "Refused", "make")

#: what is done to a module, in this order: some of ``STEPS``
Plan: TypeAlias = tuple[str, ...]
#: from a batch to the model's output
Forward: TypeAlias = Callable[[torch.Tensor], Any]

#: the steps there are, in the order they are done
STEPS = ("fuse", "channels_last", "freeze", "onednn", "aot")

#: what folds into what
_PAIRS: tuple[tuple[Any, Any], ...] = (
    (nn.Conv1d, nn.BatchNorm1d),
    (nn.Conv2d, nn.BatchNorm2d),
    (nn.Conv3d, nn.BatchNorm3d),
)

#: torch's tracer keeps its state in global variables
_ONE_AT_A_TIME = threading.Lock()


class Refused(Exception):
    """This form cannot be made of this model, or is not the same as the model; says why."""


def make(plan: Plan, module: nn.Module, example: torch.Tensor, cache: aot.Cache | None) -> Forward:
    """``module`` in the form that ``plan`` names, for batches like ``example`` of any size.

    Takes up to half a second for a net of 5 million weights, with ``"aot"`` up to a minute.
    Raises ``Refused``, or whatever torch raises.
    """
    form = module
    if "fuse" in plan:
        form = _fused(form)
    layout = torch.contiguous_format
    if "channels_last" in plan:
        if example.ndim != 4:
            raise Refused("channels_last needs inputs of 3 dimensions")
        layout = torch.channels_last
        form = copy.deepcopy(form).to(memory_format=layout)  # type: ignore[call-overload]
        example = example.contiguous(memory_format=layout)
    if "aot" in plan:
        if cache is None:
            raise Refused("compiled code needs a process of its own")
        if not aot.cached(form, example, cache) and not aot.possible():
            raise Refused("there is no C++ compiler")
        return _in_layout(aot.compiled(form, example, cache), layout)
    if "freeze" in plan or "onednn" in plan:
        return _in_layout(_frozen(form, example, onednn="onednn" in plan), layout)
    return _in_layout(form, layout)


def _in_layout(forward: Forward, layout: torch.memory_format) -> Forward:
    if layout is torch.contiguous_format:
        return forward
    return lambda inputs: forward(inputs.contiguous(memory_format=layout))


def _fused(module: nn.Module) -> nn.Module:
    """A copy with each batch normalisation folded into the convolution that stands before it.

    What stands before it need not be what runs before it: the answers are compared, as always.
    ``torch.fx`` would know, but while it traces, calls of modules in other threads go wrong.
    """
    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise Refused("fuse needs a module, not a graph; freeze does the same")
    fuse: Any = fuse_conv_bn_eval  # typed for each kind apart
    fused = copy.deepcopy(module)
    pairs = 0
    for parent in fused.modules():
        children = list(parent.named_children())
        for (name, first), (following, second) in itertools.pairwise(children):
            if _foldable(first, second):
                setattr(parent, name, fuse(first, second))
                setattr(parent, following, nn.Identity())
                pairs += 1
    if not pairs:
        raise Refused("no batch normalisation stands behind a convolution")
    return fused


def _foldable(first: nn.Module, second: nn.Module) -> bool:
    """Whether the two are a convolution and a batch normalisation that fits it."""
    for conv, norm in _PAIRS:
        if type(first) is conv and type(second) is norm:
            return bool(second.track_running_stats and first.out_channels == second.num_features)
    return False


class _Flat(nn.Module):
    """A module whose output is a flat tuple: the tracer knows neither dicts nor named tuples."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(False)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(pytree.tree_leaves(self.module(inputs)))

    def train(self, mode: bool = True) -> _Flat:
        self.training = mode  # not its parts': a module from torch.export has no modes, and raises
        return self


def _frozen(module: nn.Module, example: torch.Tensor, *, onednn: bool) -> Forward:
    """The graph that one traced call leaves, weights folded in: one release of the lock a call."""
    with torch.inference_mode():
        leaves, structure = pytree.tree_flatten(module(example))
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise Refused("its output holds more than tensors")
    with _ONE_AT_A_TIME, torch.no_grad(), _strictly():
        jit: Any = torch.jit  # untyped
        graph = jit.trace(_Flat(module), example, check_trace=False)
        graph = jit.freeze(graph)
        if onednn:
            graph = jit.optimize_for_inference(graph)
    if isinstance(structure, pytree.LeafSpec) or structure.is_leaf():
        return lambda inputs: graph(inputs)[0]
    return lambda inputs: pytree.tree_unflatten(graph(inputs), structure)


@contextmanager
def _strictly() -> Iterator[None]:
    """Raise ``Refused`` if the tracer warns: of Python code that looks at values or sizes.

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
    warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
    warnings.filterwarnings("always", category=TracerWarning)
    own = [item for item in filters if item not in old]
    warnings.showwarning = show
    try:
        yield
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
