"""Runs the suites that were asked for, one after another, whatever becomes of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from asyncinfer.bench.record import Outcome
from asyncinfer.bench.suite import SUITES, TIMED, Context, suite_named
from asyncinfer.errors import ConfigError

__all__ = ("chosen", "measure")

logger = logging.getLogger("asyncinfer")


def chosen(names: Iterable[str]) -> list[str]:
    """The suites of these names, each once; ``all`` stands for all. Raises ``ConfigError``."""
    wanted: dict[str, None] = {}
    for name in names:
        if name not in SUITES and name != "all":
            raise ConfigError(f"unknown suite {name!r}: choose one of {', '.join(SUITES)}, all")
        wanted |= dict.fromkeys(SUITES if name == "all" else [name])
    return list(wanted)


def measure(
    names: Sequence[str], context: Context, progress: Callable[[str, str], None]
) -> Iterator[Outcome]:
    """What each suite brings, as it ends; one that raises brings its error.

    ``progress`` is told the suite and what it is doing.
    """
    for name in names:
        progress(name, "begins")
        began = time.perf_counter()
        outcome = _run(name, replace(context, progress=partial(progress, name)))
        outcome.seconds = time.perf_counter() - began
        outcome.glimpse = context.short and name in TIMED
        yield outcome


def _run(name: str, context: Context) -> Outcome:
    try:
        return suite_named(name)(context)
    except Exception as error:  # the other suites are still worth running
        logger.debug("suite %s failed", name, exc_info=True)
        text = " ".join(str(error).split())
        return Outcome(name, error=f"{type(error).__name__}: {text}" if text else repr(error))
