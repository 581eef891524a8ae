"""Options of drivers: what one takes is a frozen dataclass, and its constructor takes the fields.

A field is the one owner of an option: of its name, type and default, and of its meaning in the
comment above it. Groups that several drivers share are base classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.checking import made
from asyncinfer_drivers._shared.steps import Steps

__all__ = ("StepOptions", "TuningOptions", "takes", "values")

D = TypeVar("D")
T = TypeVar("T")
P = ParamSpec("P")


def takes(
    options: Callable[P, T],
) -> Callable[[Callable[[D, T], None]], Callable[Concatenate[D, P], None]]:
    """Let a driver's ``__init__`` be called with the arguments of the dataclass ``options``.

    Type checkers, ``inspect.signature`` and ``help`` see the arguments one by one, and so does the
    config, which reads the signature. The body gets them as one object. What is misspelt, or not of
    the type that the dataclass states, is a ``ConfigError``.
    """

    def flattened(init: Callable[[D, T], None]) -> Callable[Concatenate[D, P], None]:
        @wraps(init)
        def __init__(self: D, /, *args: P.args, **kwargs: P.kwargs) -> None:  # noqa: N807
            init(self, made(options, type(self).__name__, args, kwargs))

        itself = next(iter(inspect.signature(init).parameters.values()))
        signature = inspect.signature(options)
        __init__.__dict__["__signature__"] = signature.replace(
            parameters=[itself, *signature.parameters.values()]
        )
        return __init__

    return flattened


def values(options: Any, group: type) -> dict[str, Any]:
    """The arguments of one ``group`` among the options, to be handed on."""
    return {option.name: getattr(options, option.name) for option in fields(group)}


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What is done around the model, as functions or as ``"module:function"`` to import."""

    #: from one input to a tensor, an array, a number or nested lists of numbers
    preprocess: Callable[[Any], Any] | str | None = None
    #: from one row of the model's output to the result
    postprocess: Callable[[Any], Any] | str | None = None
    #: from n inputs to a new tensor ``[n, *shape]``, as if each were preprocessed and all stacked:
    #: faster for small models. It is tried first; if it fails, ``preprocess``, which it needs
    #: beside it, finds the culprit
    collate: Callable[[Sequence[Any]], Any] | str | None = None
    #: from the model's whole output to n results, as if each row were postprocessed; needs
    #: ``postprocess`` in the same way
    uncollate: Callable[[Any], Sequence[Any]] | str | None = None
    #: one raw input. With it ``open`` runs the model, failing with ``ConfigError`` if that fails,
    #: and ``calibrate`` can tell how long a call takes
    warmup_input: Any = None

    def __post_init__(self) -> None:
        if self.collate is not None and self.preprocess is None:
            raise ConfigError("collate needs preprocess too, which does the same for one input")
        if self.uncollate is not None and self.postprocess is None:
            raise ConfigError("uncollate needs postprocess too, which does the same for one row")

    @property
    def steps(self) -> Steps:
        """The steps alone, not imported yet."""
        given: list[Any] = [self.preprocess, self.postprocess, self.collate, self.uncollate]
        return Steps(*given)


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What may be done to make a torch model faster."""

    #: ``"auto"`` tries several things for ``optimize_seconds`` and keeps the fastest; ``"none"``
    #: tries nothing; names out of ``"fuse"``, ``"channels_last"``, ``"freeze"``, ``"onednn"`` and
    #: ``"aot"``, joined by ``+`` or as a sequence, mean just that. Only what gives the model's own
    #: answers is used, and only for inputs of the warm-up's shape and dtype; docs/torch.md states
    #: the tolerance and how it is checked. ``"aot"`` needs ``isolation="process"``, and each needs
    #: a ``warmup_input``. What ``forward`` does besides computing, such as counting or printing,
    #: may be left out: then say ``"none"``
    optimize: str | Sequence[str] = "auto"
    #: seconds that ``optimize="auto"`` may take from calls with tasks, to time calls of its own;
    #: what it makes and checks beside them may take four times as long
    optimize_seconds: float = 3.0
    #: ``"auto"`` raises glibc's thresholds for giving memory back while such a driver is open;
    #: ``"none"`` leaves them as they are
    malloc: Literal["auto", "none"] = "auto"
