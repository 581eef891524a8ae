"""What a module holds, and what its code can reach outside of it."""

from __future__ import annotations

import dis
import functools
import io
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = (
    "Variable",
    "children",
    "is_foreign",
    "is_holder",
    "leads_to_module",
    "may_hide",
    "named_inside",
    "outside",
    "walk",
)

#: packages whose classes and functions keep nothing of a model's
_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "asyncinfer", "asyncinfer_drivers"}
#: parts of the standard library whose objects keep what they are given in attributes
_KEEPING = ("collections", "types")
#: what every module has
_REGISTERS = frozenset(vars(nn.Module()))
#: what cannot change and leads nowhere
_PLAIN = frozenset({int, float, complex, str, bytes, bool, type(None), torch.Size, torch.dtype})
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
#: containers outside of the model that are larger than this are not looked at
_LARGEST = 10_000
#: of the standard library's, what can hide something that changes
_HIDING = (Iterator, io.IOBase)
#: a scripted graph that writes an attribute, or reads a container that it could write to
_SCRIPT_WRITES = re.compile(r"prim::SetAttr|: (?:Dict\(.*\)|\S+\[\]) = prim::GetAttr")
_SCRIPT_READS = re.compile(r': Tensor = prim::GetAttr\[name="(\w+)"\]')


def is_foreign(thing: Any) -> bool:
    """Whether a class or function belongs to a package that keeps nothing of a model's."""
    return _foreign_package(str(getattr(thing, "__module__", None)))


@functools.cache
def _foreign_package(module: str) -> bool:
    return module != "__main__" and module.partition(".")[0] in _FOREIGN


def is_holder(value: Any) -> bool:
    """Whether a call could store something in ``value``, which is then seen in its ``children``."""
    if isinstance(value, torch.jit.ScriptModule | type | types.ModuleType):
        return False
    if isinstance(value, (*_CONTAINERS, nn.Module, types.MethodType, functools.partial)):
        return True
    if isinstance(value, torch.Tensor | types.FunctionType) or not hasattr(value, "__dict__"):
        return bool(_slots(_kind(value))) and not is_foreign(type(value))
    return type(value).__module__ in _KEEPING or not is_foreign(type(value))


def children(holder: Any) -> list[Any]:
    """What it holds, one level deep."""
    if type(holder) is dict:
        return [*holder.values()]
    if type(holder) in _CONTAINERS:
        return [*holder]
    if isinstance(holder, types.MethodType):
        return [holder.__self__, holder.__func__]
    if isinstance(holder, functools.partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    if isinstance(holder, nn.Module):  # of its own attributes, most are empty registers of hooks
        return [v for name, v in vars(holder).items() if name not in _REGISTERS or v]
    found = list[Any]()
    if isinstance(holder, dict):
        found += holder.values()
    elif isinstance(holder, _CONTAINERS):
        found += holder
    found += getattr(holder, "__dict__", {}).values()
    found += (getattr(holder, name) for name in _slots(_kind(holder)) if hasattr(holder, name))
    return found


def _kind(value: Any) -> Any:
    return type(value)  # as something that mypy takes for hashable


@functools.cache
def _slots(kind: Any) -> tuple[str, ...]:
    slots = (vars(base).get("__slots__", ()) for base in kind.__mro__ if not is_foreign(base))
    names = (name for each in slots for name in ((each,) if isinstance(each, str) else each))
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def walk(roots: Iterable[Any]) -> Iterator[Any]:
    """All that ``roots`` hold, each thing once, with what hooks have captured of a model."""
    seen, stack = dict[int, Any](), list(roots)
    while stack:
        value = stack.pop()
        if type(value) in _PLAIN or id(value) in seen:
            continue
        seen[id(value)] = value  # kept, so that no other gets its id
        yield value
        if isinstance(value, torch.jit.ScriptModule):
            stack += [*value.parameters(), *value.buffers()]
        elif is_holder(value):
            stack += children(value)
        else:
            stack += (each for each in captured(value) if leads_to_module(each))


def leads_to_module(root: Any) -> bool:
    """Whether ``root`` is, holds or refers to a module; a copy of it then has its own."""
    seen, stack = dict[int, Any](), [root]
    while stack:
        value = stack.pop()
        if isinstance(value, nn.Module):
            return True
        if id(value) not in seen and not _large(value):
            seen[id(value)] = value
            stack += children(value) if is_holder(value) else captured(value)
    return False


def _large(value: Any) -> bool:
    return isinstance(value, _CONTAINERS) and len(value) > _LARGEST


def may_hide(value: Any) -> bool:
    """Whether ``value`` could change without being seen to: generators, files, compiled code."""
    if isinstance(value, torch.jit.ScriptModule):
        return _script_keeps(value)
    if isinstance(value, torch.Tensor | nn.Module | types.FunctionType | type | types.ModuleType):
        return False
    if isinstance(value, _HIDING):
        return True
    return not (is_holder(value) or is_foreign(type(value)))


def _script_keeps(module: torch.jit.ScriptModule) -> bool:
    try:
        text = str(module.inlined_graph)
    except RuntimeError:  # it has no forward
        return True
    names = {n for n, _ in (*module.named_parameters(), *module.named_buffers())}
    known = {name.rpartition(".")[2] for name in names}
    return bool(_SCRIPT_WRITES.search(text)) or not known.issuperset(_SCRIPT_READS.findall(text))


def captured(value: Any) -> Iterator[Any]:
    """What a function has kept from where it was made, or a weak reference refers to."""
    if isinstance(value, weakref.ref):
        yield value()
    if isinstance(value, functools._lru_cache_wrapper):
        yield value.__wrapped__
    if not isinstance(value, types.FunctionType):
        return
    for cell in value.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    yield from value.__defaults__ or ()
    yield from (value.__kwdefaults__ or {}).values()
    yield from vars(value).values()


class Variable(NamedTuple):
    """A global variable."""

    variables: dict[str, Any]
    name: str


def outside(things: list[Any]) -> list[Any]:
    """Where the code of ``things``, all that is in a model, can keep something outside of it.

    That is classes, and global variables and what functions have captured, as far as the code that
    ``forward`` leads to has their names.
    """
    found = _Outside(things)
    found.follow()
    return found.places


def named_inside(things: list[Any]) -> str:
    """A global variable by which the code of ``things`` refers to a module among them; or ``""``.

    It would refer to that, and not to the copy, in a copy too.
    """
    code = _Outside(things)
    code.follow()
    return code.own_name


class _Outside:
    def __init__(self, things: list[Any]) -> None:
        kinds = {base for kind in set(map(type, things)) for base in kind.__mro__}
        self._classes = [kind for kind in kinds if not is_foreign(kind)]
        self._functions = [t for t in things if isinstance(t, types.FunctionType)]
        self._names, self._seen = set[str](), set[int]()
        self._inside = {id(thing) for thing in things}
        self.places: list[Any] = [*self._classes]
        #: of a global variable that is a module inside
        self.own_name = ""

    def follow(self) -> None:
        self._meet({"forward", "__call__"})
        while self._functions:
            function = self._functions.pop()
            if id(function) in self._seen or is_foreign(function):
                continue
            self._seen.add(id(function))
            for value in captured(function):
                self._add(value)
            names = set(_names(function.__code__))
            for name in names & function.__globals__.keys():
                value = function.__globals__[name]
                if not isinstance(value, types.ModuleType | type):
                    self.places.append(Variable(function.__globals__, name))
                inside = isinstance(value, nn.Module) and id(value) in self._inside
                if inside and name in _global_names(function.__code__):
                    self.own_name = name
                self._add(value)
            self._meet(names)

    def _add(self, value: Any) -> None:
        value = value.__func__ if isinstance(value, types.MethodType) else value
        if isinstance(value, types.FunctionType):
            self._functions.append(value)
        elif isinstance(value, type):
            self.places += [] if is_foreign(value) else [value]
        elif id(value) not in self._inside:
            for each in () if _large(value) else walk([value]):
                kind = self._functions if isinstance(each, types.FunctionType) else self.places
                kind.append(each)

    def _meet(self, names: set[str]) -> None:
        """Follow the methods with these names, of whatever class."""
        new = names - self._names
        self._names |= new
        for kind in self._classes:
            for name in new & vars(kind).keys():
                value = vars(kind)[name]
                value = getattr(value, "fget", None) or getattr(value, "__func__", value)
                self._add(getattr(value, "__wrapped__", value))
                self._add(value)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Those among its names that are not of attributes."""
    for instruction in dis.get_instructions(code):
        if instruction.opname.endswith(("_GLOBAL", "_NAME")):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
