"""Copies of a module that share the memory of its weights and nothing else."""

from __future__ import annotations

import copy
import functools
import io
import threading
import types
import weakref
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._torch.inside import (
    children,
    is_holder,
    leads_to_module,
    named_inside,
    walk,
)

__all__ = ("Claim", "NoCopy", "check_complete", "own_copy", "shared_tensors")

#: bytes from which a buffer is shared like a parameter, until a call is seen to write to it
_LARGE = 1 << 20
#: modules of the standard library whose objects cannot be copied, and other such objects
_UNIQUE = frozenset(
    {
        *("_asyncio", "_contextvars", "_io", "_queue", "_socket", "_ssl", "_thread", "asyncio"),
        *("concurrent", "contextvars", "io", "multiprocessing", "queue", "select", "selectors"),
        *("socket", "sqlite3", "ssl", "subprocess", "threading"),
    }
)
#: what ``deepcopy`` leaves as it is, or what may hold such
_REBOUND = (
    types.FunctionType,
    types.MethodType,
    functools.partial,
    weakref.ref,
    functools._lru_cache_wrapper,
)
_UNIQUE_KINDS = (AbstractEventLoop, Generator, AsyncGenerator, Coroutine, io.IOBase)


class NoCopy(Exception):
    """This module cannot be copied; says why."""


@torch.inference_mode(False)
def own_copy(module: nn.Module, *, share: bool = True) -> nn.Module:
    """A copy of ``module`` with attributes, containers, hooks and small buffers of its own.

    With ``share`` it has the memory of parameters and large buffers in common with ``module``.
    Hooks, methods and closures that refer to the module or its parts refer to the copy there.
    Raises ``NoCopy``.
    """
    things = list(walk([module]))
    _check_parts(things)
    shared = _shared(things) if share else ()
    memo: dict[int, Any] = {id(tensor): _alias(tensor) for tensor in shared}
    try:
        with _Detached():
            duplicate = copy.deepcopy(module, memo)
        if any(isinstance(thing, _REBOUND) for thing in things):
            _Rebinding(memo).apply(duplicate)
    except Exception as error:
        raise NoCopy(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    if duplicate is module:
        raise NoCopy("its __deepcopy__ returns the module itself")
    if share:
        _share_scripted(module, duplicate)
    if (ranges := getattr(module, "range_constraints", None)) is not None:
        duplicate.range_constraints = ranges  # a graph module leaves out what was set on it
    return duplicate


def shared_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and large buffers: what ``own_copy`` does not copy.

    Layers that scale their own weights while they run have theirs copied.
    """
    return _shared(walk([module]))


def _shared(things: Iterable[Any]) -> list[torch.Tensor]:
    parts = [part for part in things if isinstance(part, nn.Module)]
    own = {id(p) for part in parts if _renormalises(part) for p in part.parameters(recurse=False)}
    found = (
        tensor
        for part in parts
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if isinstance(tensor, nn.Parameter) or tensor.element_size() * tensor.numel() >= _LARGE
    )
    return [tensor for tensor in found if id(tensor) not in own]


def check_complete(module: nn.Module) -> None:
    """Raise ``ConfigError`` for weights that the first call would draw at random."""
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise ConfigError(
            "the model has lazy layers without weights yet: call it once before you give it"
        )


def _check_parts(things: list[Any]) -> None:
    """Raise ``NoCopy`` for what no copy can be made of: half of one would do harm."""
    for thing in things:
        kind = type(thing)
        if kind.__module__.partition(".")[0] in _UNIQUE or isinstance(thing, _UNIQUE_KINDS):
            raise NoCopy(f"it holds a {kind.__module__}.{kind.__qualname__}")
    if name := named_inside(things):
        raise NoCopy(f"its code uses a part of it by the name of the global variable {name}")


def _renormalises(part: nn.Module) -> bool:
    return isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor in the same memory, so that ``tensor.data = x`` changes one of the two."""
    if tensor.is_inference() or type(tensor) not in (torch.Tensor, nn.Parameter):
        return tensor
    alias = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        alias = nn.Parameter(alias, tensor.requires_grad)
    for name, value in vars(tensor).items():
        setattr(alias, name, value)
    return alias


class _Detached(TorchFunctionMode):
    """Lets tensors be copied that are no leaves of a graph, or were made in inference mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if tensor.is_inference() or not tensor.is_leaf:
                return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _share_scripted(module: nn.Module, duplicate: nn.Module) -> None:
    """Give scripted parts the memory of the parameters back: they are copied in C++, whole."""
    for one, other in zip(module.modules(), duplicate.modules(), strict=False):
        if isinstance(one, torch.jit.ScriptModule) and isinstance(other, torch.jit.ScriptModule):
            own = dict(other.named_parameters(recurse=False))
            for name, parameter in one.named_parameters(recurse=False):
                own[name].data = parameter.data


class _Rebinding:
    """Has functions and weak references in a copy refer to the copy: ``deepcopy`` leaves them."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._done: dict[int, Any] = {}
        self._kept = list[Any]()  # so that ids stay theirs

    def apply(self, root: Any) -> None:
        """Rebind in everything that ``root`` holds."""
        seen, stack = set[int](), [root]
        while stack:
            holder = stack.pop()
            if id(holder) in seen or not is_holder(holder):
                continue
            seen.add(id(holder))
            self._rebind_in(holder)
            stack += children(holder)

    def _rebind_in(self, holder: Any) -> None:
        if isinstance(holder, functools.partial):
            partial: Any = holder  # its __setstate__ has no stub
            args = tuple(map(self.new, partial.args))
            state = self.new(partial.func), args, partial.keywords, vars(partial)
            partial.__setstate__(state)
        elif isinstance(holder, dict | list):
            _replace(holder, self.new)
        if hasattr(holder, "__dict__"):
            _replace(vars(holder), self.new)

    def new(self, value: Any) -> Any:
        """What stands for ``value`` in the copy."""
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, weakref.ref):
            target = self._memo.get(id(value()))
            return value if target is None else weakref.ref(target)
        if isinstance(value, types.MethodType):
            function = self.new(value.__func__)
            return value if function is value.__func__ else type(value)(function, value.__self__)
        if isinstance(value, tuple) and any(isinstance(v, types.FunctionType) for v in value):
            return tuple(map(self.new, value)) if type(value) is tuple else value
        if isinstance(value, types.FunctionType) and leads_to_module(value):
            return self._function(value)
        if isinstance(value, functools._lru_cache_wrapper) and leads_to_module(value.__wrapped__):
            cached = functools.lru_cache(**value.cache_parameters())
            self._done[id(value)] = again = cached(self._inner(value.__wrapped__))
            return again
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        again = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells
        )
        self._done[id(function)] = again
        self._kept.append(function)
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # not assigned yet
                cell.cell_contents = self._inner(old.cell_contents)
        again.__defaults__ = self._inner(function.__defaults__)
        again.__kwdefaults__ = self._inner(function.__kwdefaults__)
        again.__dict__.update({k: self._inner(v) for k, v in vars(function).items()})
        again.__qualname__, again.__doc__ = function.__qualname__, function.__doc__
        return again

    def _inner(self, value: Any) -> Any:
        """What stands for a value that a function has captured."""
        if isinstance(value, types.FunctionType | weakref.ref | functools._lru_cache_wrapper):
            return self.new(value)
        if not leads_to_module(value):
            return value  # not the model's: whoever made the function still sees what it does
        again = copy.deepcopy(value, self._memo)
        self.apply(again)
        return again


def _replace(items: Any, new: Any) -> None:
    for key, value in list(items.items() if isinstance(items, dict) else enumerate(items)):
        if (again := new(value)) is not value:
            items[key] = again


class Claim:
    """The use of a module that cannot be copied, by one ``owner`` at a time."""

    _held: ClassVar[set[Claim]] = set()
    _lock = threading.Lock()

    def __init__(self, module: nn.Module, owner: object, reason: str) -> None:
        self._parts = {id(part): part for part in module.modules()}  # kept: ids stay theirs
        self._owner = owner
        with self._lock:
            others = (claim for claim in self._held if claim._owner is not owner)
            if any(claim._parts.keys() & self._parts.keys() for claim in others):
                raise ConfigError(
                    f"the model cannot be copied ({reason}), and another driver uses it: "
                    "give a function that makes the model instead, so that each has its own"
                )
            self._held.add(self)

    def release(self) -> None:
        """Let others have it. Idempotent."""
        with self._lock:
            self._held.discard(self)
