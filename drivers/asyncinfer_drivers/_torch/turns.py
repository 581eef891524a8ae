"""Calls that take turns: models of one class may have more in common than their weights."""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers._torch.inside import is_foreign

__all__ = ("Call", "Turns")

#: seconds that a call waits for its turn
_PATIENCE = 120.0


@dataclass(eq=False)
class Call:
    """A call that runs."""

    #: classes and functions of the model's own
    code: frozenset[Any]
    alone: bool
    #: whether another call of the same code ran meanwhile
    met: bool = False


class Turns:
    """When calls of one model may run: beside others that use the same code, or alone.

    ``things`` is what is in the model. Torch's own layers keep nothing outside of themselves.
    """

    _changed: ClassVar = threading.Condition()
    _running: ClassVar[list[Call]] = []
    _marked: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self, name: str, things: Iterable[Any]) -> None:
        self._name = name
        functions = types.FunctionType
        code = (
            type(t) if isinstance(t, nn.Module) else t
            for t in things
            if isinstance(t, nn.Module | functions)
        )
        own = (each for each in code if not is_foreign(each))
        self._code = frozenset(getattr(each, "__code__", each) for each in own)

    @property
    def needed(self) -> bool:
        """Whether this code was seen to need turns."""
        return any(each in self._marked for each in self._code)

    def need(self) -> None:
        """Remember that it does."""
        for each in self._code:
            self._marked.add(each)

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[Call]:
        """Wait for the turn of a call; ``DeviceLost`` if another one does not end."""
        call = Call(self._code, alone)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free(alone), _PATIENCE):
                raise DeviceLost(self._name, "another driver's call of its model does not end")
            for other in self._others():
                other.met = call.met = True
            self._running.append(call)
        try:
            yield call
        finally:
            with self._changed:
                self._running.remove(call)
                self._changed.notify_all()

    def _free(self, alone: bool) -> bool:
        return not any(alone or other.alone for other in self._others())

    def _others(self) -> list[Call]:
        return [call for call in self._running if call.code & self._code]
