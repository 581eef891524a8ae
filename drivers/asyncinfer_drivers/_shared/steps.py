"""What is done around a module: for one task, and for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from asyncinfer.errors import ConfigError
from asyncinfer.registry import import_object

__all__ = ("Steps",)


class Steps(NamedTuple):
    """The steps around a module.

    ``collate`` and ``uncollate`` are the faster way, tried first; the steps for one task say what
    is right, and whose fault it is if the faster way fails.
    """

    #: from one input to its tensor
    preprocess: Callable[[Any], Any] | None = None
    #: from one row of the module's output to the result
    postprocess: Callable[[Any], Any] | None = None
    #: from n inputs to a new tensor ``[n, ...]``, as if each were preprocessed and all stacked
    collate: Callable[[Sequence[Any]], Any] | None = None
    #: from the module's output for n tasks to n results, as if each row were postprocessed
    uncollate: Callable[[Any], Sequence[Any]] | None = None

    @classmethod
    def given(cls, preprocess: Any, postprocess: Any, collate: Any, uncollate: Any) -> Steps:
        """Those of a user; ``ConfigError`` if one for batches is without its like for one task."""
        if collate is not None and preprocess is None:
            raise ConfigError("collate needs preprocess too, which does the same for one input")
        if uncollate is not None and postprocess is None:
            raise ConfigError("uncollate needs postprocess too, which does the same for one row")
        return cls(preprocess, postprocess, collate, uncollate)

    def imported(self) -> Steps:
        """With those imported that are given as ``module:name``."""
        return Steps(*(import_object(step) if isinstance(step, str) else step for step in self))

    def over(self, others: Steps) -> Steps:
        """These, and those of ``others`` before or after the module where there are none here."""
        before = self if self.preprocess else others
        after = self if self.postprocess else others
        return Steps(before.preprocess, after.postprocess, before.collate, after.uncollate)
