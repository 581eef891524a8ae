"""What is done around a module: for one task, and for a whole batch at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from asyncinfer.errors import InputError
from asyncinfer.registry import import_object

__all__ = ("Fallbacks", "Steps")


class Steps(NamedTuple):
    """The steps around a module, as ``StepOptions`` describes them.

    ``collate`` and ``uncollate`` are the faster way, tried first; the steps for one task say what
    is right, and whose fault it is if the faster way fails.
    """

    preprocess: Callable[[Any], Any] | None = None
    postprocess: Callable[[Any], Any] | None = None
    collate: Callable[[Sequence[Any]], Any] | None = None
    uncollate: Callable[[Any], Sequence[Any]] | None = None

    def imported(self) -> Steps:
        """With those imported that are given as ``module:name``."""
        return Steps(*(import_object(step) if isinstance(step, str) else step for step in self))

    def over(self, others: Steps) -> Steps:
        """These, and those of ``others`` before or after the module where there are none here.

        A ``preprocess`` that has a method ``around`` only makes inputs of what is given, such as
        pictures of files: that of ``others`` comes after it.
        """
        around = getattr(self.preprocess, "around", None)
        before = self if self.preprocess else others
        if around is not None and others.preprocess is not None:
            both = around(others.preprocess)
            before = self if both is self.preprocess else Steps(both)
        after = self if self.postprocess else others
        return Steps(before.preprocess, after.postprocess, before.collate, after.uncollate)


class Fallbacks:
    """Warns, once each, of steps for batches that failed; those for one task do their work."""

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self._name, self._logger = name, logger
        self._told = set[str]()

    def note(self, step: str, error: Exception) -> None:
        """The step raised this. An ``InputError`` is expected: one task's step tells whose."""
        if step not in self._told and not isinstance(error, InputError):
            self._told.add(step)
            self._logger.warning(
                "%s: %s failed, which costs time; the step for one task does its work (%s: %s)",
                self._name, step, type(error).__name__, error,
            )  # fmt: skip
