"""Tells whether a faster form of a model may stand for it: the model itself is the judge."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

from asyncinfer_drivers._torch.branches import Watched, watched
from asyncinfer_drivers._torch.compare import changed, difference, probes, state, unlike
from asyncinfer_drivers._torch.device import is_device_fault
from asyncinfer_drivers._torch.variants import BY_ONE_WAY, Forward, Plan, Refused

__all__ = ("Judge",)

#: how far an input is moved to see how much of a difference is the model's own rounding, in steps
#: between neighbouring numbers
_MOVED = 4


class Judge:
    """The answers of one module to inputs like ``item``, the tensor of one task, and unlike it.

    ``batch`` is the largest batch that is wanted, ``sample`` the one that forms are made for.
    """

    def __init__(
        self, module: nn.Module, item: torch.Tensor, batch: int, sample: torch.Tensor
    ) -> None:
        self._module = module
        self._item = item
        self._sample = sample
        items = probes(item)
        several = [torch.stack(items[:2]), torch.stack([*items[1:], items[0]])]
        #: batches of 1, 2 and 3 tasks, all different, as far as batches are wanted
        self._examples = [*(each.unsqueeze(0) for each in items), *(several if batch > 1 else ())]

    def unfit(self) -> str:
        """Why nothing can stand for this module; or ``""``."""
        before = state(self._module)
        answers = self._answers
        again = [self._answer(example) for example in self._examples]
        if changed(before, state(self._module)):
            return "the model keeps state"
        if answers[0] is None:
            return "the model raises"
        if any(difference(*pair) for pair in zip(answers, again, strict=True)):
            return "the model does not repeat its answers"
        return ""

    def allow(self, plan: Plan) -> None:
        """Raise ``Refused`` for a form that would go one way where the module may go another."""
        if isinstance(self._module, torch.jit.ScriptModule):
            return  # a graph already, which keeps its branches
        if BY_ONE_WAY.intersection(plan) and self._watched.values:
            raise Refused(self._watched.values)
        if "channels_last" in plan and self._watched.memory:
            raise Refused(self._watched.memory)

    def check(self, forward: Forward) -> None:
        """Raise ``Refused`` unless the form gives the module's answers to inputs like the item."""
        for example, answer in zip(self._examples, self._answers, strict=True):
            # where the model raises the form may too, or not: the model will be asked
            wrong = "" if answer is None else difference(answer, forward(example.clone()))
            if wrong:
                raise Refused(wrong)

    def check_further(self, forward: Forward) -> None:
        """The same for inputs unlike the item, where rounding alone may make a difference."""
        for example, answer in self._further:
            wrong = "" if answer is None else difference(answer, forward(example.clone()))
            if wrong and not self._shaky(example, answer):
                raise Refused(f"{wrong}, for an input unlike the warm-up's")

    @cached_property
    def _answers(self) -> list[Any]:
        """The module's own output for each example, ``None`` where it raises."""
        return [self._answer(example) for example in self._examples]

    @cached_property
    def _further(self) -> list[tuple[torch.Tensor, Any]]:
        examples = [item.unsqueeze(0) for item in unlike(self._item)]
        return [(example, self._answer(example)) for example in examples]

    @cached_property
    def _watched(self) -> Watched:
        one = watched(self._module, self._examples[0])
        return one if one.values or len(self._sample) == 1 else watched(self._module, self._sample)

    def _answer(self, example: torch.Tensor) -> Any:
        try:
            return self._module(example.clone())
        except Exception as error:
            if is_device_fault(error):
                raise
            return None

    def _shaky(self, example: torch.Tensor, answer: Any) -> bool:
        """Whether the module's own answer is another one if the input moves by its last digits."""
        if not example.dtype.is_floating_point:
            return False
        generator = torch.Generator().manual_seed(42)
        signs = torch.randint(0, 2, example.shape, generator=generator).to(example) * 2 - 1
        moved = example * (1 + _MOVED * torch.finfo(example.dtype).eps * signs)
        near = self._answer(moved)
        return near is None or bool(difference(answer, near))
