"""The tables of a config file, checked: unknown keys, wrong types, ``[dispatcher]``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from asyncinfer.errors import ConfigError
from asyncinfer.options import Hedge, Timeouts
from asyncinfer.registry import did_you_mean

__all__ = ("check_keys", "dispatcher", "typed")


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise ``ConfigError`` with the nearest known key for one that is not known."""
    for key in table:
        if key not in set(known):
            raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(key, known)}")


def typed(table: Mapping[str, Any], key: str, where: str, kind: type, expected: str) -> Any:
    """The value of a key, ``None`` if it is not there; ``ConfigError`` if it is of another kind."""
    value = table.get(key)
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{where}: {key!r} must be {expected}, not {value!r}")
    return value


def dispatcher(table: Any, source: str) -> dict[str, Any]:
    """The dispatcher's keyword arguments; ``ConfigError`` for what is wrong with them."""
    where = f"{source}: [dispatcher]"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    check_keys(table, set(_DISPATCHER), where)
    for key, value in table.items():
        valid, expected = _DISPATCHER[key]
        if (isinstance(value, bool) and key != "hedge") or not valid(value):
            raise ConfigError(f"{where}: {key!r} must be {expected}, not {value!r}")
    made = {"timeout": _timeouts, "hedge": _hedge}
    return {key: made[key](value, where) if key in made else value for key, value in table.items()}


def _timeouts(value: Any, where: str) -> Timeouts:
    if not isinstance(value, dict):
        return Timeouts.of(value)
    where = f"{where}, timeout"
    check_keys(value, {limit.name for limit in fields(Timeouts)}, where)
    for key, seconds in value.items():
        if (key, seconds) == ("run", "auto"):
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise ConfigError(f"{where}: {key!r} must be seconds above 0, not {seconds!r}")
    return Timeouts(**value)


def _hedge(value: Any, where: str) -> Hedge | None:
    if not isinstance(value, dict):
        return Hedge.of(value)
    check_keys(value, {setting.name for setting in fields(Hedge)}, f"{where}, hedge")
    try:
        return Hedge(**value)
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from error


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


def _is_bytes(value: Any) -> bool:
    return value == math.inf or _at_least(1)(value)


def _is_timeout(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, int | float) and value > 0)


_DISPATCHER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "policy": (lambda value: isinstance(value, str), "a text"),
    "window": (_at_least(1), "a whole number from 1"),
    "queue_size": (_at_least(1), "a whole number from 1"),
    "queue_bytes": (_is_bytes, "a whole number of bytes from 1, or inf"),
    "retries": (_at_least(0), "a whole number from 0"),
    "timeout": (_is_timeout, "seconds above 0, or a table of them"),
    "hedge": (lambda value: isinstance(value, bool | dict), "true, false or a table"),
    "wait_for": (lambda value: value in ("first", "all"), "'first' or 'all'"),
}
