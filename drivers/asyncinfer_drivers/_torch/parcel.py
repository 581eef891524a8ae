"""Modules that pickle by itself cannot send to another process, or not so that they arrive."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ("reduced",)


def reduced(module: nn.Module) -> Any:
    """What a pickler is to put instead of ``module``; ``NotImplemented`` where it knows itself."""
    if isinstance(module, torch.jit.ScriptModule):
        file = io.BytesIO()
        torch.jit.save(module, file)
        return _script, (file.getvalue(),)
    kind: Any = type(module)
    if parametrize.is_parametrized(module):
        plain = kind.__base__  # the class that the user wrote: torch has put one of its own on it
        values = plain.__getstate__(module)
        # weight_norm puts a local function there, which loads old files
        values = values | {"_load_state_dict_pre_hooks": OrderedDict()}
        names = list(values["_modules"]["parametrizations"])
        return _new, (plain,), (values, names), None, None, _set_parametrised
    if kind.__module__.startswith("torch.ao.") and kind.__setstate__ is not nn.Module.__setstate__:
        state: Any = module
        return _new, (kind,), state.__getstate__(), None, None, _set_quantised
    return NotImplemented


def _script(saved: bytes) -> nn.Module:
    module: nn.Module = torch.jit.load(io.BytesIO(saved))  # type: ignore[no-untyped-call]
    return module


def _new(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _set_parametrised(module: nn.Module, state: tuple[Any, list[str]]) -> None:
    """What ``register_parametrization`` does, with the tensors as they were."""
    values, names = state
    _set(module, values)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)


def _set_quantised(module: nn.Module, state: Any) -> None:
    """Their own ``__setstate__`` is for TorchScript, which has initialised the module before."""
    nn.Module.__init__(module)
    _set(module, state)


def _set(module: Any, state: Any) -> None:
    module.__setstate__(state)
