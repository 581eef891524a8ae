"""Asks all that may be there at once: who is slow or dead does not delay the rest.

Two optional class methods of a driver say what there is:

``discover()`` returns what it finds on this host, a dict with a ``name`` each.

``leads(configured)`` returns whom to ask: by name, a function that takes the seconds it has and
returns a list of such dicts. ``configured`` has the options of the config's devices of that driver,
by name. A class has leads of its own only: they are not inherited.

Both, and those functions, may block: each runs in a thread that does not keep the program alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from asyncinfer.config import DeviceConfig
from asyncinfer.errors import AsyncInferError, DeviceTimeout
from asyncinfer.registry import DriverFactory

__all__ = ("look",)

Facts: TypeAlias = dict[str, Any]
Lookup: TypeAlias = Callable[[], Any]
#: the driver's name, and that of what is looked for
Key: TypeAlias = tuple[str, str]

_HOST, _LEADS = "host", "leads"

#: seconds beyond its timeout in which a lookup that gives up by itself may say so
_GRACE = 0.25


def look(
    factories: Mapping[str, DriverFactory], own: Sequence[DeviceConfig], timeout: float
) -> dict[str, list[Facts]]:
    """What the drivers find: ``host`` has what is on this host, ``found`` what leads came to.

    There, ``state`` is "ready", "silent", "failed", or another one that the driver gives.
    """
    asked: dict[Key, Lookup] = {}
    for driver, factory in factories.items():
        if "leads" in vars(factory):
            configured = {device.name: device.options for device in own if device.driver == driver}
            asked[driver, _LEADS] = partial(factory.leads, configured)  # type: ignore[attr-defined]  # it has
        elif (discover := getattr(factory, "discover", None)) is not None:
            asked[driver, _HOST] = discover
    first = _together(asked, timeout)
    lookups: dict[Key, Lookup] = {}
    host: list[Facts] = []
    failed: list[Facts] = []
    for (driver, kind), outcome in first.items():
        if kind == _HOST:
            host += _facts(driver, "-", outcome)
        elif isinstance(outcome, Exception):
            failed += _facts(driver, "-", outcome)
        else:
            lookups |= {(driver, name): partial(lead, timeout) for name, lead in outcome.items()}
    found = [
        {"state": "ready", "error": None, **facts}
        for (driver, name), outcome in _together(lookups, timeout).items()
        for facts in _facts(driver, name, outcome)
    ]
    return {"host": host, "found": failed + found}


def _facts(driver: str, name: str, outcome: Any) -> list[Facts]:
    if not isinstance(outcome, Exception):
        return [{"driver": driver, "name": name, **facts} for facts in outcome]
    state = "silent" if isinstance(outcome, DeviceTimeout) else "failed"
    known = isinstance(outcome, AsyncInferError | OSError)
    text = str(outcome) if known else f"{type(outcome).__name__}: {outcome}"
    return [{"driver": driver, "name": name, "state": state, "error": text}]


def _together(lookups: Mapping[Key, Lookup], timeout: float) -> dict[Key, Any]:
    """What each returns or raises, in their order; ``DeviceTimeout`` for those still at it."""
    done: SimpleQueue[tuple[Key, Any]] = SimpleQueue()
    outcomes: dict[Key, Any] = dict.fromkeys(lookups)
    for key, lookup in lookups.items():
        name = f"asyncinfer-look-{':'.join(key)}"
        threading.Thread(target=_run, args=(key, lookup, done), name=name, daemon=True).start()
        outcomes[key] = DeviceTimeout(key[1], f"no answer within {timeout:g} s (--timeout)")
    deadline = time.monotonic() + timeout + _GRACE
    for _ in lookups:
        try:
            key, outcome = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        outcomes[key] = outcome
    return outcomes


def _run(key: Key, lookup: Lookup, done: SimpleQueue[tuple[Key, Any]]) -> None:
    try:
        done.put((key, lookup()))
    except Exception as error:
        done.put((key, error))
