"""Models that take several tensors for one task: by name, in order, or in one container.

``Bundle`` holds them where else one tensor is. It has of a tensor what those need that run one, so
that they need not know; ``asked`` puts its parts into a module's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import nn

__all__ = ("Bundle", "Form", "asked", "bundle", "each", "parts", "repeated")

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """How tensors become the arguments of a module."""

    #: of the tensors; numbers where they have no names
    names: tuple[str | int, ...]
    #: so many of them, the first, are given by position, the others by name
    positions: int = 0
    #: what the module takes instead, as its one argument: a ``dict``, ``tuple`` or ``list`` of them
    container: type | None = None
    #: constants of an exported program, by position and by name
    constants: tuple[tuple[int | str, Any], ...] = ()

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """What to call the module with."""
        if self.container is dict:
            return [dict(zip(self.names, tensors, strict=True))], {}
        if self.container is not None:
            return [self.container(tensors)], {}
        positional: list[Any] = list(tensors[: self.positions])
        named = zip(self.names[self.positions :], tensors[self.positions :], strict=True)
        keywords: dict[str, Any] = {str(name): tensor for name, tensor in named}
        for place, value in self.constants:
            if isinstance(place, int):
                positional.insert(place, value)
            else:
                keywords[place] = value
        return positional, keywords

    def place(self, at: int) -> str:
        """What to call one of them in messages."""
        return f"input {self.names[at]!r}"


_Made: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Bundle:
    """Several tensors of one task, or of a batch of tasks, of which each has the batch first.

    Where a model takes one tensor, these go in its place: they answer to the same questions. What
    they have no answer to is an ``AttributeError`` or ``TypeError``, and never an answer for some.
    """

    __slots__ = ("__weakref__", "form", "tensors")

    def __init__(self, form: Form, tensors: Sequence[torch.Tensor]) -> None:
        self.form = form
        self.tensors = tuple(tensors)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """``torch.stack`` and ``torch.cat`` of bundles of one form."""
        if func not in (torch.stack, torch.cat) or len(args) != 1 or kwargs:
            return NotImplemented
        bundles: Sequence[Bundle] = args[0]
        columns = zip(*(one.tensors for one in bundles), strict=True)
        return cls(bundles[0].form, [func(list(column)) for column in columns])

    def _each(self, change: _Made) -> Bundle:
        return Bundle(self.form, [change(tensor) for tensor in self.tensors])

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, at: Any) -> Bundle:
        return self._each(lambda tensor: tensor[at])

    def __mul__(self, factor: float) -> Bundle:
        return self._each(lambda tensor: tensor * factor if tensor.is_floating_point() else tensor)

    def clone(self) -> Bundle:
        """Those with memory of their own."""
        return self._each(torch.clone)

    def to(self, *arguments: Any, **options: Any) -> Bundle:
        """Those on another device."""
        return self._each(lambda tensor: tensor.to(*arguments, **options))

    def unsqueeze(self, dim: int) -> Bundle:
        """Those with one more dimension."""
        return self._each(lambda tensor: tensor.unsqueeze(dim))

    def is_floating_point(self) -> bool:
        """Whether any of them can be made larger without becoming another word or class."""
        return any(tensor.is_floating_point() for tensor in self.tensors)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensors[0].device

    @property
    def shape(self) -> torch.Size:
        """Of the first; ``facts`` has all."""
        return self.tensors[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the first; ``facts`` has all."""
        return self.tensors[0].dtype

    @property
    def facts(self) -> tuple[Any, ...]:
        """What those that can be stacked have in common, besides shape and dtype."""
        return self.form, *((tuple(t.shape), t.dtype) for t in self.tensors)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What those have in common whose outputs are made alike."""
        return self.form, *((t.ndim, t.dtype) for t in self.tensors)

    def __str__(self) -> str:
        shown = (f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in self.tensors)
        return ", ".join(f"{n}: {text}" for n, text in zip(self.form.names, shown, strict=True))


def bundle(form: Form, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A ``Bundle``, which passes for one tensor."""
    return cast("torch.Tensor", Bundle(form, tensors))


def asked(module: Callable[[torch.Tensor], T], inputs: torch.Tensor) -> T:
    """The output for a batch: of a module, which gets its arguments, or of what calls one."""
    if isinstance(inputs, Bundle) and isinstance(module, nn.Module):
        positional, keywords = inputs.form.arguments(inputs.tensors)
        output: T = module(*positional, **keywords)
        return output
    return module(inputs)


def parts(inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All tensors that go in."""
    return inputs.tensors if isinstance(inputs, Bundle) else (inputs,)


def repeated(item: torch.Tensor, count: int) -> torch.Tensor:
    """A batch of so many times the tensor of one task."""
    if isinstance(item, Bundle):
        return bundle(item.form, [repeated(tensor, count) for tensor in item.tensors])
    return item.expand(count, *item.shape).clone()


def each(
    change: Callable[[torch.Tensor], list[torch.Tensor]], item: torch.Tensor
) -> list[torch.Tensor]:
    """Bundles of what ``change`` makes of each of its tensors.

    Where it makes fewer of one than of another, the last is taken again, or the tensor itself.
    """
    assert isinstance(item, Bundle)  # noqa: S101  # it is called for nothing else
    columns = [change(tensor) for tensor in item.tensors]
    return list(_rows(item, columns))


def _rows(item: Bundle, columns: Sequence[list[torch.Tensor]]) -> Iterator[torch.Tensor]:
    for at in range(max(map(len, columns))):
        chosen = (
            column[min(at, len(column) - 1)] if column else tensor
            for column, tensor in zip(columns, item.tensors, strict=True)
        )
        yield bundle(item.form, list(chosen))
