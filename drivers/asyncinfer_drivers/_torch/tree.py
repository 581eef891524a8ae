"""What a model may return, taken apart: containers of all kinds, and the leaves in them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ("Node", "leaves", "mapped", "opened", "plain", "same")

#: what may be said of every task
_PLAIN = (str, bytes, bool, int, float, complex, np.generic)
#: what is no container, whatever it says of itself
_LEAVES = (torch.Tensor, np.ndarray, nn.Module, type, type(None), *_PLAIN)
#: mappings that become a plain ``dict``
_DICTS = (dict, OrderedDict, defaultdict)


class Node(NamedTuple):
    """A container, one level of it."""

    kind: type
    #: what it holds besides its children
    context: Any
    #: of the children: keys, numbers or attributes
    names: Sequence[Any]
    children: list[Any]
    #: from other children to a container like it, with no memory in common
    make: Callable[[Sequence[Any]], Any]

    def like(self, other: Node | None) -> bool:
        """Whether the two differ in their children's values only."""
        return (
            other is not None
            and self.kind is other.kind
            and self.names == other.names
            and (self.context is other.context or same(self.context, other.context))
        )

    def place(self, name: Any) -> str:
        """Where a child is, as Python would write it behind the container."""
        attributes = getattr(self.kind, "_fields", ()) or dataclasses.is_dataclass(self.kind)
        return f".{name}" if attributes and isinstance(name, str) else f"[{name!r}]"


def opened(value: Any) -> Node | None:
    """One level of a container; ``None`` for a leaf.

    Containers are mappings, tuples (named ones too), lists, dataclasses, and classes that are
    registered with ``torch.utils._pytree``.
    """
    kind = type(value)
    if isinstance(value, _LEAVES):
        return None
    if kind is tuple or kind is list:
        return Node(kind, None, range(len(value)), list(value), kind)
    if isinstance(value, Mapping) and (kind in _DICTS or kind not in pytree.SUPPORTED_NODES):
        keys = list(value)
        return Node(
            kind,
            None,
            keys,
            list(value.values()),
            lambda found: dict(zip(keys, found, strict=True)),
        )
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None) or range(len(value))
        return Node(kind, None, names, list(value), getattr(value, "_make", kind))
    if kind in pytree.SUPPORTED_NODES:
        return _registered(value)
    return _record(value) if dataclasses.is_dataclass(value) else None


def _registered(value: Any) -> Node:
    definition = pytree.SUPPORTED_NODES[type(value)]
    children, context = definition.flatten_fn(value)
    names = list(value) if isinstance(value, Mapping) else range(len(children))

    def make(parts: Sequence[Any]) -> Any:
        return definition.unflatten_fn(list(parts), context)

    return Node(type(value), context, names, list(children), make)


def _record(value: Any) -> Node:
    """A dataclass: its fields, and whatever else was put into it."""
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    names += [name for name in getattr(value, "__dict__", ()) if name not in names]
    kind: Any = type(value)

    def make(children: Sequence[Any]) -> Any:
        made = object.__new__(kind)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(made, name, child)  # a frozen one refuses anything else
        return made

    return Node(kind, None, names, [getattr(value, name) for name in names], make)


def leaves(value: Any) -> Iterator[Any]:
    """All in it that is no container."""
    node = opened(value)
    if node is None:
        yield value
    else:
        for child in node.children:
            yield from leaves(child)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same containers, with ``function`` of each leaf."""
    node = opened(value)
    if node is None:
        return function(value)
    return node.make([mapped(function, child) for child in node.children])


def plain(value: Any) -> bool:
    """Whether it is None, a string or a number: it may be said of every task."""
    return value is None or isinstance(value, _PLAIN)


def same(one: Any, other: Any) -> bool:
    """Whether two plain values or contexts are equal; false where that cannot be told."""
    if type(one) is not type(other):
        return False
    try:
        return one is other or bool(one == other) or (one != one and other != other)
    except Exception:  # of classes that compare in their own way, such as those of tensors
        return False
