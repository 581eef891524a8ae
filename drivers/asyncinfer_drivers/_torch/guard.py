"""Uses the fast form of a model where its answers are known to be the model's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from asyncinfer_drivers._torch.compare import difference
from asyncinfer_drivers._torch.device import is_device_fault
from asyncinfer_drivers._torch.optimize import Choice
from asyncinfer_drivers._torch.variants import Forward

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ("Guarded",)

logger = logging.getLogger("asyncinfer.torch")


class Guarded:
    """A module and its fast form as one function.

    The fast form gets inputs of the warm-up's shape and dtype. The first batch of each size goes
    through both: the model's answer counts, and a difference is the end of the fast form. Whatever
    has another shape or dtype goes to the model, and so does everything once the fast form raises.
    """

    def __init__(self, name: str, module: nn.Module, choice: Choice, item: torch.Tensor) -> None:
        self._name = name
        self._module = module
        self._fast: Forward | None = choice.forward if choice.plan else None
        self._shape, self._dtype = item.shape, item.dtype
        self._checked = set[int]()

    @property
    def fast(self) -> bool:
        """Whether the fast form is used still."""
        return self._fast is not None

    def __call__(self, inputs: torch.Tensor) -> Any:
        """The output for a batch."""
        fast = self._fast
        if fast is None or inputs.shape[1:] != self._shape or inputs.dtype != self._dtype:
            return self._module(inputs)
        if len(inputs) not in self._checked:
            return self._check(inputs, fast)
        try:
            return fast(inputs)
        except Exception as error:
            self._drop(error)
            return self._module(inputs)

    def _check(self, inputs: torch.Tensor, fast: Forward) -> Any:
        """The model's answer, and whether the fast form gives it too."""
        same = inputs.clone()  # a model may write to its input
        wanted = self._module(inputs)
        try:
            wrong = difference(wanted, fast(same))
        except Exception as error:
            self._drop(error)
            return wanted
        if wrong:
            self._drop(wrong)
        self._checked.add(len(inputs))
        return wanted

    def _drop(self, reason: str | Exception) -> None:
        if isinstance(reason, Exception) and is_device_fault(reason):
            raise reason
        self._fast = None
        logger.warning(
            "%s: the optimised model is dropped, the model itself goes on: %s", self._name, reason
        )
