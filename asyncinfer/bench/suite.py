"""The suites by name, and what each of them is given."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from asyncinfer.bench.record import Outcome
from asyncinfer.config import Config
from asyncinfer.errors import ConfigError

__all__ = ("SUITES", "TIMED", "Context", "Suite", "suite_named")


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True)
class Context:
    """What was asked for."""

    #: names for ``config.select``; a suite takes its own if there are none
    devices: Sequence[str] = ()
    config: Config = field(default_factory=Config)
    #: repeats of each case that is measured in real time
    runs: int = 5
    seed: int = 42
    #: the short form: seconds, for CI and for a first look
    short: bool = False
    #: told what is being measured, one line each
    progress: Callable[[str], None] = _silent


Suite: TypeAlias = Callable[[Context], Outcome]

#: module and function of each suite, imported when it is asked for; in the order of ``all``
SUITES = {
    "paper": "asyncinfer.bench.simulated.paper:run",
    "ablation": "asyncinfer.bench.simulated.ablation:run",
    "scale": "asyncinfer.bench.simulated.scale:run",
    "overhead": "asyncinfer.bench.overhead.suite:run",
    "link": "asyncinfer.bench.link.suite:run",
    "real": "asyncinfer.bench.real.suite:run",
    "sharing": "asyncinfer.bench.sharing.suite:run",
    "peers": "asyncinfer.bench.peers.suite:run",
}

#: suites that go by the real clock: in some seconds it tells little
TIMED = ("overhead", "link", "real", "sharing", "peers")


def suite_named(name: str) -> Suite:
    """The function that runs a suite. Raises ``ConfigError``."""
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}: choose one of {', '.join(SUITES)}, all")
    module, _, function = SUITES[name].partition(":")
    suite: Suite = getattr(importlib.import_module(module), function)
    return suite
