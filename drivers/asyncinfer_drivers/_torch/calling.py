"""What a module takes, by its signature, TorchScript's schema, or an exported program's graph."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from asyncinfer.errors import InputError
from asyncinfer_drivers._torch.batch import to_tensor
from asyncinfer_drivers._torch.exported import size_range
from asyncinfer_drivers._torch.inputs import Form, bundle
from asyncinfer_drivers._torch.load import load

__all__ = ("Argument", "Calling", "described")

#: what cannot be told of a function
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

#: a size where any will do
_USUAL = 16


@dataclass(frozen=True)
class Argument:
    """One that a module's ``forward`` takes."""

    name: str
    required: bool = True
    by_position: bool = True
    by_name: bool = True
    #: what it is a container of tensors of: a ``dict``, ``tuple`` or ``list``
    container: type | None = None
    #: whether it is known to be a tensor
    tensor: bool = False
    #: names of what is in the ``dict``, or numbers; as far as known
    inside: tuple[str | int, ...] = ()
    #: what an exported program has to be given for it, and nothing else
    constant: tuple[Any, ...] = ()
    #: what it was exported with, of each tensor
    examples: tuple[torch.Tensor, ...] = ()


class Calling:
    """How a module is called with the inputs of a task."""

    def __init__(
        self, arguments: Sequence[Argument], *, more: bool = False, any_name: bool
    ) -> None:
        self.arguments = tuple(arguments)
        #: it takes any number of tensors by position; and by any name
        self._more, self._any_name = more, any_name

    @classmethod
    def of(cls, module: nn.Module) -> Calling:
        """What that module takes."""
        if isinstance(module, torch.jit.ScriptModule):
            return cls(_of_script(module), any_name=False)
        exported = _of_exported(module)
        if exported is not None:
            return cls(exported, any_name=False)
        try:
            parameters = inspect.signature(module.forward).parameters.values()
        except (TypeError, ValueError):  # it does not tell
            return cls((), more=True, any_name=True)
        kinds = {parameter.kind for parameter in parameters}
        more, any_name = (kind in kinds for kind in _ANY)
        hints = _hints(module.forward)
        found = [_argument(p, hints.get(p.name)) for p in parameters if p.kind not in _ANY]
        return cls(found, more=more, any_name=any_name)

    def taken(self, item: Any) -> torch.Tensor:
        """The tensor of a task, or the bundle of its tensors where it is a mapping or a tuple.

        Raises ``InputError`` for what the module does not take.
        """
        if isinstance(item, Mapping):
            return self._by_name(item)
        form = self._in_order(item) if _of_tensors(item) else None
        if form is None:
            return to_tensor(item)  # such as numbers
        return bundle(form, [to_tensor(part) for part in item])

    # ---- by name

    def _by_name(self, item: Mapping[Any, Any]) -> torch.Tensor:
        given = {str(name): value for name, value in item.items() if value is not None}
        if not given:
            raise InputError("a mapping with no inputs in it")
        ordered = self._container(tuple, list)
        if ordered is not None and ordered.name not in given:
            places = [given.get(_numbered(at)) for at in range(len(given))]
            return self.taken(tuple(to_tensor(part) for part in places))
        container = self._container(dict)
        known = [argument.name for argument in self.arguments if not argument.constant]
        strangers = [name for name in given if name not in known]
        if container is not None and (strangers or container.container is dict):
            self._check_inside(container, given)
            form = Form(tuple(given), container=dict)
        else:
            form = self._as_arguments(given, strangers)
        return bundle(form, [_named(given[str(name)], str(name)) for name in form.names])

    def _check_inside(self, container: Argument, given: Mapping[str, Any]) -> None:
        if container.inside and set(given) != set(container.inside):
            raise InputError(
                f"the model takes a dict of {_listed(container.inside)}, not of {_listed(given)}"
            )

    def _as_arguments(self, given: Mapping[str, Any], strangers: Sequence[str]) -> Form:
        needed = [a.name for a in self.arguments if a.required and not a.constant]
        missing = [name for name in needed if name not in given]
        if missing or (strangers and not self._any_name):
            what = f"lacks {_listed(missing)}" if missing else f"has {_listed(strangers)}"
            known = [a.name for a in self.arguments if not a.constant]
            raise InputError(
                f"the task {what}: the model's inputs are called {_listed(known) or 'nothing'}"
            )
        ordered = [a for a in self.arguments if a.name in given]
        first = [a.name for a in ordered if not a.by_name]
        if first != [a.name for a in self.arguments if not (a.by_name or a.constant)][: len(first)]:
            raise InputError(f"of the inputs {_listed(first)}, one before the last is missing")
        rest = [a.name for a in ordered if a.by_name]
        return Form((*first, *rest, *strangers), len(first), constants=self._constants())

    def _constants(self) -> tuple[tuple[int | str, Any], ...]:
        return tuple(
            (at if argument.by_position else argument.name, argument.constant[0])
            for at, argument in enumerate(self.arguments)
            if argument.constant
        )

    def _container(self, *kinds: type) -> Argument | None:
        """The one argument, if it may be a container of these kinds."""
        needed = [a for a in self.arguments if a.required and not a.constant]
        if len(needed) != 1 or self._any_name:
            return None
        only = needed[0]
        if only.container in kinds:
            return only
        unknown = only.container is None and not only.tensor
        return only if unknown and dict in kinds else None

    # ---- in order

    def _in_order(self, item: Sequence[Any]) -> Form | None:
        """``None``: it is one tensor."""
        count = len(item)
        container = self._container(tuple, list)
        if container is not None:
            if container.inside and len(container.inside) != count:
                raise InputError(f"the model takes {len(container.inside)} tensors, not {count}")
            return Form(tuple(range(count)), container=container.container)
        places = [a for a in self.arguments if a.by_position and not a.constant]
        needed = [a for a in self.arguments if a.required and not a.constant]
        if count > len(places) and not self._more:
            if len(places) < 2:
                return None
            raise InputError(f"the model takes {len(places)} tensors at most, not {count}")
        if any(argument not in places[:count] for argument in needed):
            missing = [argument.name for argument in needed if argument not in places[:count]]
            raise InputError(f"the task is a tuple of {count} tensors: it lacks {_listed(missing)}")
        names = [a.name for a in places[:count]]
        return Form((*names, *range(len(names), count)), count, constants=self._constants())


def _numbered(at: int) -> str:
    """What the input at that place is called where it has no name."""
    return f"input{at}"


def _of_tensors(item: Any) -> bool:
    return bool(item) and all(isinstance(part, torch.Tensor | np.ndarray) for part in item)


def _named(value: Any, name: str) -> torch.Tensor:
    try:
        return to_tensor(value)
    except InputError as error:
        raise InputError(f"input {name!r}: {error}") from error


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # of names that are there for type checkers only
        return {}


def _argument(parameter: inspect.Parameter, hint: Any) -> Argument:
    kind = parameter.kind
    return Argument(
        parameter.name,
        required=parameter.default is parameter.empty,
        by_position=kind is not parameter.KEYWORD_ONLY,
        by_name=kind is not parameter.POSITIONAL_ONLY,
        container=_container(hint),
        tensor=hint is torch.Tensor,
        inside=_inside(hint),
    )


def _container(hint: Any) -> type | None:
    """The kind of container that an annotation asks for."""
    kind = typing.get_origin(hint) or hint
    if not isinstance(kind, type) or issubclass(kind, str | bytes | torch.Tensor):
        return None
    if issubclass(kind, Mapping):
        return dict
    if issubclass(kind, tuple):
        return tuple
    return list if issubclass(kind, Sequence) else None


def _inside(hint: Any) -> tuple[str | int, ...]:
    if typing.is_typeddict(hint):
        return tuple(hint.__required_keys__) if not hint.__optional_keys__ else ()
    given = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and given and Ellipsis not in given:
        return tuple(range(len(given)))
    return ()


def _of_script(module: torch.jit.ScriptModule) -> list[Argument]:
    """By TorchScript's own schema."""
    forward: Any = module.forward
    schema = getattr(forward, "schema", None)
    found = list[Argument]()
    for argument in schema.arguments[1:] if schema is not None else ():
        text = str(argument.type)
        kinds = {"Dict": dict, "Tuple": tuple, "List": list}
        container = next((kind for name, kind in kinds.items() if text.startswith(name)), None)
        if container is None and text.endswith("[]"):
            container = list
        optional = argument.has_default_value()
        found.append(
            Argument(
                argument.name,
                required=not optional,
                container=container,
                tensor=container is None,
            )
        )
    return found


def _of_exported(module: nn.Module) -> list[Argument] | None:
    """By the arguments that a program was exported with; ``None`` if it is none."""
    graph: Any = getattr(module, "graph", None)
    info = getattr(getattr(graph, "_codegen", None), "pytree_info", None)
    if info is None or not hasattr(module, "range_constraints"):
        return None
    positional, keywords = map(_children, _children(info.in_spec))
    values = (node.meta.get("val") for node in graph.nodes if node.op == "placeholder")
    found = list[Argument]()
    for at, name in enumerate(info.orig_args):
        by_position = at < len(positional)
        spec = [*positional, *keywords][at]
        inner = [next(values) for _ in range(spec.num_leaves)]
        found.append(_exported(name, spec, inner, by_position=by_position))
    return found


def _children(spec: Any) -> Sequence[Any]:
    children = getattr(spec, "children", None)  # new in torch 2.10
    found: Sequence[Any] = spec.children_specs if children is None else children()
    return found


def _exported(name: str, spec: Any, inner: Sequence[Any], *, by_position: bool) -> Argument:
    container = None
    inside: tuple[str | int, ...] = ()
    if not spec.is_leaf():
        container = dict if spec.type is dict else spec.type
        inside = tuple(spec.context) if spec.type is dict else tuple(range(len(inner)))
    constant = spec.is_leaf() and not isinstance(inner[0], torch.Tensor)
    return Argument(
        name,
        by_position=by_position,
        by_name=not by_position,
        container=container,
        tensor=spec.is_leaf(),
        inside=inside,
        constant=(inner[0],) if constant else (),
        examples=() if constant else tuple(inner),
    )


def described(model: Any) -> list[dict[str, Any]]:
    """See ``TorchDriver.model_inputs``."""
    module = model if isinstance(model, nn.Module) else load(model, torch.device("cpu")).module
    arguments = [a for a in Calling.of(module).arguments if not a.constant]
    ranges = getattr(module, "range_constraints", None) or {}
    alone = len(arguments) == 1 and arguments[0].container is None
    found = list[dict[str, Any]]()
    for argument in arguments:
        names = [_numbered(n) if isinstance(n, int) else n for n in argument.inside]
        for at, name in enumerate(names or [argument.name]):
            example = argument.examples[at] if argument.examples else None
            found.append(
                {"name": name, "optional": not argument.required, "alone": alone}
                | _facts(example, ranges)
            )
    return found


def _facts(example: torch.Tensor | None, ranges: Mapping[Any, Any]) -> dict[str, Any]:
    if example is None:
        return {"dtype": None, "shape": None, "sizes": None}
    sizes = example.shape[1:]
    return {
        "dtype": str(example.dtype).removeprefix("torch."),
        "shape": tuple(size if isinstance(size, int) else -1 for size in sizes),
        "sizes": tuple(size if isinstance(size, int) else _within(size, ranges) for size in sizes),
    }


def _within(size: Any, ranges: Mapping[Any, Any]) -> int:
    """A size that will do where several do."""
    least, most = size_range(size, ranges)
    return _USUAL if most is None else max(least, min(_USUAL, most))
