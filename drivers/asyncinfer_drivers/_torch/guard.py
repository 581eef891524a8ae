"""Uses the fast form of a model where its answers are known to be the model's own."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from asyncinfer_drivers._torch.compare import difference
from asyncinfer_drivers._torch.device import is_device_fault
from asyncinfer_drivers._torch.inputs import Bundle, asked
from asyncinfer_drivers._torch.optimize import Choice
from asyncinfer_drivers._torch.variants import Forward

__all__ = ("Guarded",)

logger = logging.getLogger("asyncinfer.torch")

#: rows of a larger batch that are compared first
_ROWS = 3
#: batches of real inputs that are compared first; then one each time their number has doubled
_FIRST = 4


class Guarded:
    """A module and its fast form as one function.

    The fast form gets inputs of the warm-up's shape and dtype. Of the first batch of each size, of
    the first few batches that are not the warm-up input, and ever more rarely of those that follow,
    some rows go through both, and all of them if those differ: then the model's answer counts, and
    a difference is the end of the fast form. Whatever has another shape or dtype goes to the
    model, and so does everything once the fast form raises.
    """

    def __init__(self, name: str, module: nn.Module, choice: Choice, item: torch.Tensor) -> None:
        self._name = name
        self._module = module
        self._fast: Forward | None = choice.forward if choice.plan else None
        self._item = item
        self._shape, self._dtype = item.shape, item.dtype
        #: sizes of batches that were compared, and of those with real inputs
        self._checked, self._checked_really = set[int](), set[int]()
        self._calls = 0
        #: comparisons of real inputs, and the call from which on the next one is due
        self._comparisons, self._due = 0, 0

    @property
    def fast(self) -> bool:
        """Whether the fast form is used still."""
        return self._fast is not None

    def __call__(self, inputs: torch.Tensor) -> Any:
        """The output for a batch."""
        fast = self._fast
        if isinstance(inputs, Bundle):  # fast forms are made for one tensor
            return asked(self._module, inputs)
        if fast is None or inputs.shape[1:] != self._shape or inputs.dtype != self._dtype:
            return self._module(inputs)
        self._calls += 1
        count = len(inputs)
        if count not in self._checked_really or self._calls >= self._due:
            real = self._is_real(inputs)
            if real or count not in self._checked:
                return self._check(inputs, fast, real)
        try:
            return fast(inputs)
        except Exception as error:
            self._drop(error)
            return self._module(inputs)

    def _is_real(self, inputs: torch.Tensor) -> bool:
        """Whether it is no batch of warm-up inputs, which come again and again to be timed."""
        return not (torch.equal(inputs[0], self._item) and torch.equal(inputs[-1], self._item))

    def _check(self, inputs: torch.Tensor, fast: Forward, real: bool) -> Any:
        """The answer to this batch, and whether the fast form gives it."""
        same = inputs.clone()  # a model may write to its input
        got: Any = None
        reason: str | Exception = ""
        try:
            got = fast(same)
        except Exception as error:
            reason = error
        if reason or not self._rows_agree(inputs, got):
            wanted = self._module(inputs)  # raises if the input is to blame: the form stays then
            reason = reason or _unlike(wanted, got)
            if reason:
                self._drop(reason)
            got = wanted
        self._checked.add(len(inputs))
        if real:
            self._checked_really.add(len(inputs))
            self._comparisons += 1
            self._due = self._calls * 2 if self._comparisons >= _FIRST else 0
        return got

    def _rows_agree(self, inputs: torch.Tensor, got: Any) -> bool:
        """Whether the model has the same answer for some rows by themselves: all would take long.

        If not, that need not be the fast form's fault: a model may look at the whole batch.
        """
        count = len(inputs)
        if count <= _ROWS:
            return False
        at = torch.tensor([0, count // 2, count - 1], device=inputs.device)
        if count in self._checked_really:  # other rows each time
            at = (at + self._comparisons) % count
        try:
            wanted = self._module(inputs[at])
        except Exception:
            return False  # running the whole batch will show whose fault that is
        return not _unlike(wanted, pytree.tree_map(lambda leaf: _some(leaf, at, count), got))

    def _drop(self, reason: str | Exception) -> None:
        if isinstance(reason, Exception) and is_device_fault(reason):
            raise reason
        self._fast = None
        logger.warning(
            "%s: the optimised model is dropped, the model itself goes on: %s", self._name, reason
        )


def _unlike(wanted: Any, got: Any) -> str | Exception:
    """How the two differ, or why they cannot be compared; ``""`` if they are the same."""
    try:
        return difference(wanted, got)
    except Exception as error:
        return error


def _some(leaf: Any, at: torch.Tensor, count: int) -> Any:
    """Those rows of a tensor that has one for each task."""
    if isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (count,):
        return leaf[at]
    return leaf
