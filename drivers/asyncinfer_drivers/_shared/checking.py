"""Checks what a driver was given against the types that its options state."""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from asyncinfer.errors import ConfigError
from asyncinfer.registry import did_you_mean

__all__ = ("check", "made")

T = TypeVar("T")

#: the least that numbers may be, where that is not 1 for whole ones and 0 for others
LEAST: Mapping[str, float] = {"slowdown": 1, "icount": 0, "seed": -math.inf}
#: options that say "no time at all" with 0, which no call can keep
ABOVE_ZERO = frozenset(
    (
        "latency_target",
        *(f"{what}_timeout" for what in ("connect", "open", "queue", "run", "start")),
    )
)


def made(record: Callable[..., T], driver: str, args: Sequence[Any], given: dict[str, Any]) -> T:
    """The options of a ``driver``, of what its constructor was given.

    Raises ``ConfigError``, which names the option, the device, the value and what is right.
    """
    signature = inspect.signature(record)
    for name in given:
        if name not in signature.parameters:
            hint = did_you_mean(name, signature.parameters)
            raise ConfigError(f"{driver} has no option {name!r}: {hint}")
    try:
        bound = signature.bind(*args, **given)
    except TypeError as error:
        raise ConfigError(f"{driver}: {error}") from None
    device = _device(bound.arguments, signature) or driver
    check(record, bound.arguments, f"device {device!r}")
    try:
        return record(*args, **given)
    except ConfigError as error:
        if str(error).startswith((f"{device}:", f"device {device!r}")):
            raise
        raise ConfigError(f"device {device!r}: {error}") from error


def check(record: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigError`` for the first value that is not of its option's type, or too small."""
    hints = _hints(record)
    for name, value in given.items():
        hint = hints.get(name, Any)
        if not _fits(hint, value, name):
            told = _told(hint, name)
            raise ConfigError(f"{where}: {name} must be {told}, not {value!r}")


def _device(given: Mapping[str, Any], signature: inspect.Signature) -> str:
    """What the device is called: by its name, or by where it runs."""
    for name in ("name", "device"):
        if isinstance(text := given.get(name), str):
            return text
    for name in ("name", "device"):
        parameter = signature.parameters.get(name)
        if parameter is not None and isinstance(parameter.default, str):
            return parameter.default
    return ""


@cache
def _hints(record: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(record)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of which one is enough."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(hint: Any, value: Any, name: str) -> bool:
    return any(_is(part, value, name) for part in _parts(hint))


def _is(hint: Any, value: Any, name: str) -> bool:
    """Whether ``value`` is of a type that is no union."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint in (int, float):
        return _is_number(hint, value, name)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in args)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is collections.abc.Sequence:
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return several and all(_fits(args[0], one, "") for one in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            _fits(args[0], key, "") and _fits(args[1], one, "") for key, one in value.items()
        )
    return not isinstance(hint, type) or isinstance(value, hint)


def _is_number(kind: type, value: Any, name: str) -> bool:
    """Whether it is one and not too small; ``True`` is none, and neither is what is not finite."""
    number = isinstance(value, int | float if kind is float else int)
    if not number or isinstance(value, bool) or not math.isfinite(value):
        return False
    return bool(value > 0 if name in ABOVE_ZERO else value >= _least(kind, name))


def _least(kind: type, name: str) -> float:
    """``name`` is empty for a part of a sequence, which may be any number."""
    if not name:
        return -math.inf
    return LEAST.get(name, 1 if kind is int else 0)


def _told(hint: Any, name: str) -> str:
    """The type in words. ``None``, where it is the default, needs no mention."""
    words = [_word(part, name) for part in _parts(hint) if part is not type(None)]
    return " or ".join(dict.fromkeys(words))


def _word(hint: Any, name: str) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint in (int, float):
        kind = "a whole number" if hint is int else "a number"
        bound = "above 0" if name in ABOVE_ZERO else f"of at least {_least(hint, name):g}"
        return f"{kind} {bound}"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is collections.abc.Sequence:
        return "a list" + _of(args[0])
    if origin is collections.abc.Mapping:
        return "a table" + _of(args[1])
    return _WORDS.get(origin or hint, getattr(hint, "__name__", str(hint)))


#: types in words
_WORDS: Mapping[Any, str] = {
    str: "a text",
    bool: "true or false",
    collections.abc.Callable: "a function",
}


def _of(hint: Any) -> str:
    words = {str: " of texts", int: " of whole numbers", float: " of numbers"}
    return words.get(hint, "")
