"""Notices what a module keeps, during a call and from one call to the next."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._torch.compare import difference, probes
from asyncinfer_drivers._torch.copies import (
    Claim,
    NoCopy,
    check_complete,
    own_copy,
    shared_tensors,
)
from asyncinfer_drivers._torch.device import is_device_fault
from asyncinfer_drivers._torch.inputs import asked
from asyncinfer_drivers._torch.inside import may_hide, outside, walk
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.turns import Turns
from asyncinfer_drivers._torch.variants import Forward
from asyncinfer_drivers._torch.watch import Snapshot, Watch

__all__ = ("REMEMBERS", "Own")

logger = logging.getLogger("asyncinfer.torch")

#: what ``difference`` can compare
_COMPARED = (torch.Tensor, int, float, complex, str, bytes, type(None))
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
#: methods that begin a new stream, in this order
_RESETS = ("reset", "reset_states", "reset_state")


class Own:
    """A driver's own module, as a function.

    It is a copy that shares nothing but the memory of weights, checked as it is first called: with
    a write to shared memory the copy gets memory of its own; if something outside of the module
    changes, which all copies have in common, calls take turns; and if the answers turn out to
    depend on what came before, ``ConfigError`` is raised instead of them, unless ``stateful``.
    """

    def __init__(self, options: TorchOptions, source: nn.Module) -> None:
        check_complete(source)
        self._name = options.called
        self._stateful = options.stateful
        self._source: nn.Module | None = source
        self._claim: Claim | None = None
        self._share = True
        self._checked = False
        self._refused: ConfigError | None = None
        #: it has random numbers of its own
        self._draws = any(isinstance(thing, _GENERATORS) for thing in walk([source]))
        self._turns = Turns(self._name, walk([source]))
        #: whether calls have to take turns
        self._outside = self._turns.needed
        #: the driver's own
        self.module = source
        self._form: Forward | None = None
        #: what the module held after its first call; ``None`` once that has changed
        self._held: Snapshot | None = None
        #: a graph that cannot keep anything is used as it is: copying one takes twice its memory
        self._graph = isinstance(source, torch.jit.ScriptModule) and not may_hide(source)
        try:
            self.module = self.fresh()
            if self._stateful:  # whoever gave the module may use it meanwhile
                self._source = self.fresh()
        except NoCopy as error:
            self._source = None
            self._claim = Claim(source, options, str(error))
            self._check_reset(error)

    def fresh(self) -> nn.Module:
        """A copy as it was before any call; ``NoCopy`` if there is none."""
        if self._source is None:
            raise NoCopy("it cannot be copied")
        if self._graph and self._share:
            return self._source
        return own_copy(self._source, share=self._share)

    @property
    def settled(self) -> bool:
        """Whether ``module`` may be called directly from now on."""
        return self._checked and not self._stateful and not self._outside

    def turn(self) -> AbstractContextManager[object]:
        """For calls of ``module`` itself, when its first call is over."""
        return self._turns.take(alone=True) if self._outside else nullcontext()

    def use(self, form: Forward) -> None:
        """Call that instead of ``module``."""
        self._form = form

    def release(self) -> None:
        """Let other drivers use a module that cannot be copied."""
        self._held = None
        if self._claim is not None:
            self._claim.release()

    def reset(self) -> None:
        """Begin a new stream: as if nothing had been asked before."""
        reset = _reset_of(self.module)
        try:
            if reset is not None:
                with torch.inference_mode():
                    reset()
            else:
                self.module = self.fresh()
        except Exception as error:
            text = f"its model could not be reset: {type(error).__name__}: {error}"
            raise DeviceLost(self._name, text) from error

    def takes(self, inputs: torch.Tensor) -> bool:
        """Whether a copy that was asked nothing else takes them; false where there is none."""
        try:
            asked(self.fresh(), inputs)
        except Exception as error:
            if is_device_fault(error):
                raise
            return False
        return True

    def meet(self, inputs: torch.Tensor) -> None:
        """Have the first call made and watched, before copies are called that share its weights.

        What it raises, the call of a task will raise too; only ``ConfigError`` passes.
        """
        if self._checked or self._stateful or self._refused is not None:
            return
        try:
            with torch.inference_mode():
                self(inputs.clone())
        except ConfigError:
            raise
        except Exception as error:
            if is_device_fault(error):
                raise

    def __call__(self, inputs: torch.Tensor) -> Any:
        """The output for a batch."""
        if self._refused is not None:
            raise self._refused.with_traceback(None)
        if self._outside and self._checked:
            with self._turns.take(alone=True):
                return self._call(inputs)
        if self._checked:
            return self._call(inputs)
        kept = inputs.clone()
        with self._turns.take(alone=self._outside) as call:
            output, suspect = self._first(inputs)
        if self._outside:
            with self._turns.take(alone=True):
                if call.met:
                    output = self._again(kept, output)
                return self._judged(kept, output)
        return self._judged(kept, output) if suspect else output

    def recall(self, *asked: torch.Tensor) -> None:
        """See whether calls since the first have left something that makes answers others.

        Raises ``ConfigError`` if a fresh copy answers one of these inputs otherwise. A model may
        keep something of few inputs only, such as of those that have a face in them.
        """
        if self._refused is not None:
            raise self._refused.with_traceback(None)
        if not self._checked or self._stateful or self._source is None:
            return
        if self._held is not None and not self._held.changed():
            return
        self._held = None  # from now on answers are compared each time
        with torch.inference_mode(), self.turn():
            if any(map(self._remembers, asked)):
                self._refused = ConfigError(f"{self._name}: {REMEMBERS}")
                raise self._refused

    def _remembers(self, inputs: torch.Tensor) -> bool:
        before = self._randomness(inputs.device)
        fresh = _answer(self.fresh(), inputs)
        if not difference(fresh, _answer(self.module, inputs)):
            return False
        again = _answer(self.fresh(), inputs)
        return before == self._randomness(inputs.device) and not difference(fresh, again)

    def _check_reset(self, error: NoCopy) -> None:
        if self._stateful and _reset_of(self.module) is None:
            raise ConfigError(
                f"{self._name}: stateful=True cannot bring the model back to its start: it has no "
                f"method reset, and cannot be copied ({error}); give it such a method"
            )

    def _call(self, inputs: torch.Tensor) -> Any:
        return asked(self._form or self.module, inputs)

    def _again(self, inputs: torch.Tensor, output: Any) -> Any:
        if self._source is None:
            return output
        self.module, self._held = self.fresh(), None
        return asked(self.module, inputs.clone())

    def _first(self, inputs: torch.Tensor) -> tuple[Any, bool]:
        """The answer to the first call, and whether the module may have kept something of it."""
        things = list(walk([self.module]))
        own, common = Snapshot(things), Snapshot(outside(things))
        output, suspect = self._watched(inputs)
        self._checked = True
        if common.changed() and not self._outside:
            self._outside = True
            self._turns.need()
            logger.warning(
                "%s: the model changes something outside of itself while it runs (a class, a "
                "global variable or what a hook has kept): calls of such models take turns in "
                "this process, and it is not optimised; isolation='process' lets them run side "
                "by side", self._name,
            )  # fmt: skip
        self._held = Snapshot(walk([self.module]))
        suspect = suspect or self._outside or own.changed() or any(map(may_hide, things))
        return output, suspect

    def _judged(self, inputs: torch.Tensor, output: Any) -> Any:
        """``output``, unless answers depend on what came before: then ``ConfigError``."""
        if self._stateful:
            ask = self._reset
        else:
            ask = self._repeated if self._source is None else self._compared
        reason = ask(inputs, _kept(output))
        if reason:
            self._refused = ConfigError(f"{self._name}: {reason}")
            raise self._refused
        return output

    def _watched(self, inputs: torch.Tensor) -> tuple[Any, bool]:
        """The answer, and whether it took two calls.

        The second one has memory of its own for what the first would have written to, or is not
        watched: not all that torch can do can be.
        """
        kept, watch = inputs.clone(), Watch(self._shared())
        try:
            with watch:
                output = asked(self.module, inputs)
            if not watch.hit:
                return output, False
        except Exception as error:
            unwatchable = isinstance(error, RuntimeError | NotImplementedError)
            if is_device_fault(error) or not (watch.hit or unwatchable):
                raise
        self._share = self._share and not watch.hit
        if self._source is not None:
            self.module = self.fresh()
        return asked(self.module, kept), True

    def _shared(self) -> list[torch.Tensor]:
        if self._source is None or not self._share:
            return []
        if self._graph:
            return [*self.module.parameters(), *self.module.buffers()]
        return shared_tensors(self.module)

    def _compared(self, inputs: torch.Tensor, answer: Any) -> str:
        """Why its answers cannot be relied on, found with copies; or ``""``."""
        before = self._randomness(inputs.device)
        other = self.fresh()
        _ask_others(other, inputs)
        if not difference(answer, _answer(other, inputs)) and not self._grows(other, inputs):
            return ""
        if before == self._randomness(inputs.device):
            return REMEMBERS
        other = self.fresh()
        first = _answer(other, inputs)
        if not difference(answer, first):
            return REMEMBERS
        return "" if difference(first, _answer(other, inputs)) else _DRAWS

    def _grows(self, other: nn.Module, inputs: torch.Tensor) -> bool:
        """Whether what a used copy keeps shows later: after more calls, or for larger inputs."""
        for large in (1.0, 1.0, 10.0, 1.0, 100.0, 1.0):
            given = inputs * large if inputs.is_floating_point() else inputs
            _ask_others(other, given)
            if difference(_answer(self.fresh(), given), _answer(other, given)):
                return True
        return False

    def _reset(self, inputs: torch.Tensor, answer: Any) -> str:
        """Why it is not brought back to its start, or ``""``; it is left just there."""
        module = self.module if self._source is None else self.fresh()
        before, answers = self._randomness(inputs.device), list[Any]()
        for _ in range(2):
            _ask_others(module, inputs)
            try:
                if reset := _reset_of(module):
                    reset()
                else:
                    module = self.fresh()
            except Exception as error:
                return f"the model could not be reset: {type(error).__name__}: {error}"
            answers.append(_answer(module, inputs))
        drawn = before != self._randomness(inputs.device)
        return "" if drawn or not difference(*answers) else _STAYS

    def _repeated(self, inputs: torch.Tensor, answer: Any) -> str:
        """The same without copies: random numbers would look like something remembered."""
        before = self._randomness(inputs.device)
        _ask_others(self.module, inputs)
        remembers = difference(answer, _answer(self.module, inputs))
        return REMEMBERS if remembers and before == self._randomness(inputs.device) else ""

    def _randomness(self, device: torch.device) -> tuple[object, ...]:
        """What changes when random numbers are drawn."""
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        numbers = str(np.random.get_state(legacy=True))  # the ones that others draw from
        own = object() if self._draws else None
        return own, *(bytes(s.numpy()) for s in states), random.getstate(), numbers


REMEMBERS = (
    "the model keeps state between calls: its answers depend on what came before. Give "
    "stateful=True to have each stream run on one device, from a fresh start, or have forward "
    "keep nothing"
)
_STAYS = (
    "the model cannot be brought back to its start: its first answer after a reset, by its method "
    "reset, reset_states or reset_state or else as a fresh copy, depends on what came before"
)
_DRAWS = (
    "the model draws weights at random in its first call, so that each driver would answer "
    "otherwise: call it once before you give it"
)


def _reset_of(module: nn.Module) -> Callable[[], Any] | None:
    found = (getattr(module, name, None) for name in _RESETS)
    return next((reset for reset in found if callable(reset)), None)


def _ask_others(module: nn.Module, inputs: torch.Tensor) -> None:
    """Ask other things of the same shape; the model may refuse them."""
    for other in probes(inputs)[1:]:
        _answer(module, other.to(inputs.device))


def _answer(module: nn.Module, inputs: torch.Tensor) -> Any:
    """The answer, to be compared; of an error only that it is one."""
    try:
        return _kept(asked(module, inputs.clone()))
    except Exception as error:
        if is_device_fault(error):
            raise
        return type(error).__name__


def _kept(output: Any) -> Any:
    """What can be compared of an output, in new tensors: a model may write to its answers."""
    if all(isinstance(leaf, _COMPARED) for leaf in pytree.tree_leaves(output)):
        return pytree.tree_map_only(torch.Tensor, _dense, output)
    arrays = (v for v in walk([output]) if isinstance(v, torch.Tensor | np.ndarray))
    return [_dense(torch.as_tensor(v)) for v in arrays if getattr(v.dtype, "kind", "f") in "biufc"]


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.clone() if tensor.layout is torch.strided else tensor.to_dense()
