"""Faster forms of a module. Each is made of a copy; none is checked here."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from asyncinfer_drivers._torch import aot
from asyncinfer_drivers._torch.graph import Refused, frozen

__all__ = ("BY_ONE_WAY", "STEPS", "Forward", "Plan", "Refused", "make")

#: what is done to a module, in this order: some of ``STEPS``
Plan: TypeAlias = tuple[str, ...]
#: from a batch to the model's output
Forward: TypeAlias = Callable[[torch.Tensor], Any]

#: the steps there are, in the order they are done
STEPS = ("fuse", "channels_last", "freeze", "onednn", "aot")
#: those that are right only if every input goes the same way through the module's code. Folding is:
#: what stands behind a convolution may be left out for some inputs
BY_ONE_WAY = frozenset(("fuse", "freeze", "onednn", "aot"))

#: what folds into what
_PAIRS: tuple[tuple[Any, Any], ...] = (
    (nn.Conv1d, nn.BatchNorm1d),
    (nn.Conv2d, nn.BatchNorm2d),
    (nn.Conv3d, nn.BatchNorm3d),
)


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
        return _in_layout(frozen(form, example, onednn="onednn" in plan), layout)
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
