"""Learns from a model itself how its outputs are divided among tasks, and which batches it takes.

What is learnt is proved on the model's answers to single tasks: an axis that is the wrong one, and
answers that depend on what else is in the batch, show there.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._torch.branches import Decisions, Reasons, watched
from asyncinfer_drivers._torch.compare import changed, companions, difference, probes, state
from asyncinfer_drivers._torch.device import is_device_fault
from asyncinfer_drivers._torch.exported import size_range
from asyncinfer_drivers._torch.inputs import Bundle, asked
from asyncinfer_drivers._torch.outputs import (
    Misfit,
    Part,
    Sample,
    by_first,
    divided,
    learnt,
    merged,
    settled,
    undivided,
)
from asyncinfer_drivers._torch.state import REMEMBERS
from asyncinfer_drivers._torch.tree import leaves
from asyncinfer_drivers._torch.variants import Forward

__all__ = ("Bare", "Division", "OneByOne", "Source")

logger = logging.getLogger("asyncinfer.torch")

#: the user's way from an output to results
Uncollate: TypeAlias = Callable[[Any], Sequence[Any]]
#: dimensions of an input, and its dtype; of several inputs, those of each
_Key: TypeAlias = tuple[Any, ...]

#: batches that a model which takes no single task may want
_SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 64, 128, 256)
#: a batch may differ from single calls by this many times what a faster form may; on a GPU, where
#: float32 is multiplied with 10 bits unless one asks for more, by that many times
_SLACK, _GPU_SLACK = 4.0, 100.0
#: tasks of the first batch whose answers are asked for one by one too, and of later ones
_FIRST_CHECKED, _LATER_CHECKED = 8, 3
#: ways an output may be made that are remembered for each kind of input
_MOST_PARTS = 8
_BOXES = "which boxes it keeps can hang on rounding, which is another one in a batch"
_ROUNDING = (
    "set max_batch=1, or batching='trusted' if boxes of about the same score may change places"
)
_ONE_FOR_ANOTHER = "set max_batch=1, or batching='trusted' if one task cannot decide for another"


class OneByOne(Exception):
    """The tasks of this batch have to be run one by one; why was logged."""


class Source(Protocol):
    """A module that may be replaced by a copy of it as it is called."""

    @property
    def module(self) -> nn.Module:
        """The module as it is now."""
        ...

    def __call__(self, inputs: torch.Tensor) -> Any:
        """Its output for a batch."""
        ...

    def meet(self, inputs: torch.Tensor) -> None:
        """See what it does in its first call, before copies of it are called."""
        ...


@dataclass
class Bare:
    """A module that stays what it is."""

    module: nn.Module

    def __call__(self, inputs: torch.Tensor) -> Any:
        """Its output for a batch."""
        return asked(self.module, inputs)

    def meet(self, inputs: torch.Tensor) -> None:
        """It is trusted to do nothing else."""


class Division:
    """Whose a part of a module's output is, and which tasks may share a call.

    ``wanted`` is the largest batch that is asked for, ``trusted`` whether answers may depend on
    what else is in the batch.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        device: torch.device,
        uncollate: Uncollate | None,
        *,
        wanted: int,
        trusted: bool = False,
    ) -> None:
        self._name = name
        self._source = source
        self._device = device
        self._uncollate = uncollate
        self._wanted = wanted
        self._trusted = trusted
        self._slack = _SLACK if device.type == "cpu" else _GPU_SLACK
        self._parts: dict[_Key, list[Part]] = {}
        #: tasks the model takes at least and at most, as far as known
        self.least, self.most = _exported(source.module)
        #: whether it cannot even be asked for two
        self._single = self.most == 1
        self._sought = self.most is not None
        self._pure = True
        self._fault: ConfigError | None = None
        #: how Python code decided for a single task, where it decides by values
        self._usual: dict[_Key, list[bool]] = {}
        self._told = False
        #: batches that might have been checked, and of which sizes
        self._batches, self._sizes = 0, set[int]()
        self._next_check: float = 1
        #: why tasks are run one by one, or in batches of one size; empty if they are not
        self.reason = ""
        if self.most is not None:
            self._tell_sizes()

    @property
    def alone(self) -> bool:
        """Whether each task has to have a call of its own."""
        return self.most == 1

    def prepare(self, inputs: torch.Tensor) -> None:
        """See that outputs for such inputs have been studied, if there may be batches of them."""
        several = self._wanted > 1 or self.least > 1
        if several and self._fault is None and _key(inputs) not in self._parts:
            self.study(inputs)
        if self._fault is not None:
            raise self._fault

    def other_sizes(self, inputs: torch.Tensor) -> bool:
        """After the model has refused one task: whether it takes some larger number."""
        if self._wanted > 1 or self._sought or self._parts:
            return False
        self.study(inputs)
        return self.least > 1

    def due(self, count: int) -> bool:
        """Whether to check this batch: the first of its size, or the second, the fourth ..."""
        if self._next_check == math.inf or not self._pure or self._trusted:
            return False
        self._batches += 1
        new = count not in self._sizes
        self._sizes.add(count)
        return new or self._batches >= self._next_check

    def padded(self, inputs: torch.Tensor) -> torch.Tensor:
        """As many tasks as the model takes at least: the last again and again."""
        count = len(inputs)
        return inputs[[*range(count), *[count - 1] * (self.least - count)]]

    def widen(self, wanted: int) -> None:
        """Batches of that size are asked for from now on: what was taken for granted is studied."""
        if wanted > self._wanted:
            self._wanted = wanted
            self._parts.clear()

    def limit(self, most: int) -> None:
        """Larger batches have failed though their tasks did not."""
        self.most = max(most, self.least)

    # ---- learning

    def study(self, inputs: torch.Tensor) -> None:
        """Learn from calls with the first and the last of these tasks.

        Raises what the model raises for a single one; ``ConfigError`` if it can only have batches,
        and they cannot be divided. The calls are made with a copy, which shares the weights.
        """
        self._source.meet(inputs[:1].to(self._device))
        items = inputs[[0, -1]] if len(inputs) > 1 else inputs
        twin = _twin(self._source.module)
        before = state(twin)
        samples = self._samples(twin, items)
        part = self._part(samples)
        mixed = self._mixed(samples, part) or ""
        if mixed and self._random(twin, items, samples[0], part):
            mixed = ""
        known = self._parts.setdefault(_key(inputs), [])
        self._remember(known, part)
        self._judge(known, mixed)
        if self._wanted > 1 and self.least == 1 and not (self.alone or self._trusted):
            self._look(twin, items)
        if self._wanted > 1 and self.least == 1 and not (self.alone or self._trusted):
            self._outweigh(twin, items, samples[0], part)
        if changed(before, state(twin)):
            self._pure = False
            if self._wanted > 1:
                self._ask_again(twin, items, samples[0], part)

    def _samples(self, twin: nn.Module, items: torch.Tensor) -> list[Sample]:
        """Outputs for different numbers of tasks, if the model takes such."""
        first = self._first(twin, items)
        size, last = len(first.order), len(items) - 1
        if size > 1 and last == 0:  # of copies of one task nothing can be told apart
            items, last = torch.stack(probes(items[0])[:2]), 1
            first = _asked(twin, items, [at % 2 for at in range(size)], self._device)
        if size == 1:
            if self._single:
                return [first]
            other = self._tried(twin, items, [0, last]) or self._tried(twin, items, [0, 0])
            if other is None:
                self._single = True
                self._takes(1, 1)
                return [first]
            if last == 0 or self._wanted == 1:
                return [first, other]
            alone = self._tried(twin, items, [last])
            return [first, other, *([alone] if alone else [])]
        longer = [last] + [0] * size
        other = None if self.most == size else self._tried(twin, items, longer)
        if other is None:
            self._takes(size, size)
            other = self._tried(twin, items, longer[:size])
        elif self.least != size:
            self._takes(size, None)
        third = self._tried(twin, items, [last] * size)
        return [first, *(sample for sample in (other, third) if sample)]

    def _first(self, twin: nn.Module, items: torch.Tensor) -> Sample:
        """The output for the least number of tasks that the model takes."""
        last = len(items) - 1
        try:
            return _asked(twin, items, [(at % 2) * last for at in range(self.least)], self._device)
        except Exception as error:
            if is_device_fault(error) or self._sought or self._parts:
                raise
            self._sought = True
            for size in sorted({*_SIZES, max(2, self._wanted)}):
                order = [(at % 2) * last for at in range(size)]
                if (sample := self._tried(twin, items, order)) is not None:
                    return sample
            raise

    def _outweigh(self, twin: nn.Module, items: torch.Tensor, alone: Sample, part: Part) -> None:
        """See whether a task's answer is another one beside a much larger one."""
        heavy, light = companions(items[0])
        pairs: list[tuple[Sample | None, Sample | None]] = [
            *((alone, self._beside(twin, items[0], other)) for other in heavy),
            *(
                (self._tried(twin, other[None], [0]), self._beside(twin, other, items[0]))
                for other in light
            ),
        ]
        for one, both in pairs:
            if one is None or both is None or not (text := self._mixed([one, both], part)):
                continue
            if not self._random(twin, items, alone, part):
                self._judge([part], text)
            return

    def _beside(self, twin: nn.Module, item: torch.Tensor, other: torch.Tensor) -> Sample | None:
        told, self._told = self._told, True
        try:
            pair = torch.stack([item, other])
            return self._tried(lambda inputs: self.run(twin, inputs), pair, [0, 1])
        finally:
            self._told = told

    def _ask_again(self, twin: nn.Module, items: torch.Tensor, alone: Sample, part: Part) -> None:
        """Whether what the twin has kept of other items makes the first one's answer another."""
        again, once_more = (self._tried(twin, items, list(alone.order)) for _ in range(2))
        if again is None or once_more is None or self._mixed([again, once_more], part):
            return  # it has random numbers of its own
        if self._mixed([alone, again], part) and not self._random(twin, items, alone, part):
            self._fault = ConfigError(f"{self._name}: {REMEMBERS}")

    def _tried(self, twin: Forward, items: torch.Tensor, order: list[int]) -> Sample | None:
        try:
            return _asked(twin, items, order, self._device)
        except Exception as error:
            if is_device_fault(error):
                raise
            return None

    def _takes(self, least: int, most: int | None) -> None:
        if (least, most) != (self.least, self.most):
            self.least, self.most = least, most
            self._tell_sizes()

    def _tell_sizes(self) -> None:
        least, most = self.least, self.most
        if most == 1:
            self.reason = "one by one: the model takes no batches; max_batch=1 says the same"
        elif most == least:
            self.reason = f"of {most}, as the model takes no others; smaller ones are filled up"
        elif least > 1:
            self.reason = f"of {least} or more, as the model takes no smaller ones"
        elif most is not None and most < self._wanted:
            self.reason = f"of {most} at most, as the model takes no larger ones"
        if self.reason and (self._wanted > 1 or least > 1):
            logger.warning("%s: tasks are run %s", self._name, self.shown)

    @property
    def shown(self) -> str:
        """How tasks are run."""
        return self.reason if self.alone else f"in batches {self.reason}".rstrip()

    def _part(self, samples: list[Sample]) -> Part:
        if len(samples) == 1:
            return by_first(samples[0].output, len(samples[0].order))
        return learnt(*samples[:2])

    # ---- judging

    def _mixed(self, samples: Sequence[Sample], part: Part) -> str:
        """How an item's answer in one batch differs from that in another; or ``""``."""
        seen: dict[int, Any] = {}
        for sample in samples:
            try:
                answers = self._answers(sample.output, len(sample.order), part)
            except Misfit as error:
                return str(error)
            if answers is None:
                return ""
            for item, answer in zip(sample.order, answers, strict=True):
                wanted = seen.setdefault(item, answer)
                if text := difference(wanted, answer, self._slack):
                    return text
        return ""

    def _answers(self, output: Any, count: int, part: Part) -> list[Any] | None:
        """What can be compared; ``None`` if nothing can."""
        if undivided(part) is None:
            return divided(part, output, count)
        if self._uncollate is None:
            return None
        try:
            with torch.inference_mode():
                results = list(self._uncollate(output))
        except Exception as error:  # of something that is only like an input, perhaps
            if is_device_fault(error):
                raise
            return None
        return results if len(results) == count else None

    def _random(self, module: Forward, items: torch.Tensor, sample: Sample, part: Part) -> bool:
        """Whether the model draws random numbers: it repeats its answers with the same ones only.

        Then nothing can be compared, now or later.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            again = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                again.append(self._tried(module, items, list(sample.order)))
        one, same, other = again
        if one is None or same is None or other is None or self._mixed([one, same], part):
            return False
        if not self._mixed([one, other], part):
            return False
        self._next_check = math.inf
        return True

    def _judge(self, known: list[Part], mixed: str) -> None:
        whole = next((why for part in known if (why := undivided(part))), None)
        if whole is not None and self._uncollate is None:
            self._separate(
                f"{whole}, so that it cannot be told which task it belongs to",
                "give the driver uncollate, which can, or set max_batch=1",
            )
        elif mixed and not self._trusted:
            self._separate(
                f"its answers depend on what else is in the batch ({mixed})",
                "set max_batch=1, or batching='trusted' if that does not matter",
            )

    def _look(self, twin: nn.Module, items: torch.Tensor) -> None:
        """Python code that looks at values of a whole batch may decide by one task for another."""
        with torch.inference_mode(False):
            example = items[:1].to(self._device, copy=True)
        found = watched(twin, example)
        if found.chooses:
            self._separate(f"{_BOXES} ({found.chooses})", _ROUNDING)
            return
        seen = found.decides
        if not seen:
            return
        with torch.inference_mode(), Reasons() as usual:
            asked(twin, example)
        if usual.loops:  # then tasks that are done early may be filled up
            self._separate(f"values of the whole batch end a loop ({seen})", _ONE_FOR_ANOTHER)
        elif usual.taken and usual.hold:
            self._usual[_key(items)] = usual.taken
        else:
            self._separate(f"it decides by values of the whole batch ({seen})", _ONE_FOR_ANOTHER)

    def run(self, forward: Forward, inputs: torch.Tensor) -> Any:
        """The output for a batch; ``OneByOne`` if one of its tasks may have decided for another.

        That is where Python code has decided otherwise than it did for a single task.
        """
        usual = self._usual.get(_key(inputs))
        if usual is None or len(inputs) == 1:
            return asked(forward, inputs)
        with Decisions() as now:
            output = asked(forward, inputs)
        if now.taken == usual:
            return output
        if not self._told:
            self._told = True
            logger.warning(
                "%s: some batches are run one by one: the model's Python code decides by values of "
                "the whole batch; %s", self._name, _ONE_FOR_ANOTHER,
            )  # fmt: skip
        raise OneByOne

    def _separate(self, why: str, remedy: str) -> None:
        """Give each task a call of its own from now on."""
        if self.least > 1:
            self._fault = ConfigError(
                f"{self._name}: the model takes no single tasks, and batches cannot be used: "
                f"{why}; give a model that takes batches of any size"
            )
            raise self._fault
        if not self.alone:
            self.most, self.reason = 1, f"one by one: {why}"
            if self._wanted > 1:
                logger.warning("%s: tasks are run one by one: %s; %s", self._name, why, remedy)

    # ---- dividing

    def tasks(self, output: Any, inputs: torch.Tensor) -> list[Any]:
        """One output for each task. ``OneByOne`` if that cannot be told for more than one."""
        known, count = self._parts.get(_key(inputs)), len(inputs)
        if known is None:  # one task, where no batches are wanted
            if settled(output):
                self._parts[_key(inputs)] = [by_first(output, count)]
            else:
                self.study(inputs)
            known = self._parts[_key(inputs)]
        misfit: Misfit | None = None
        for attempt in ("as known", "as studied again"):
            for part in known:
                try:
                    return divided(part, output, count)
                except Misfit as error:
                    misfit = error
            if attempt == "as known" and len(known) < _MOST_PARTS:
                self.study(inputs)
        if count == 1:
            raise ValueError(f"the model's output is not made as any before: {misfit}") from misfit
        self._separate(
            f"the model returned {misfit}", "give the driver uncollate, or set max_batch=1"
        )
        raise OneByOne from misfit

    def _remember(self, known: list[Part], part: Part) -> None:
        for at, other in enumerate(known):
            if (both := merged(other, part)) is not None:
                known[at] = both
                return
        known.append(part)

    # ---- checking

    def check(self, inputs: torch.Tensor, output: Any) -> None:
        """Ask for some tasks' answers one by one. ``OneByOne`` if they are not those in ``output``.

        ``inputs`` are as they were before the call that made ``output``.
        """
        most = _FIRST_CHECKED if self._next_check == 1 else _LATER_CHECKED
        if self._batches >= self._next_check:
            self._next_check *= 2
        for part in self._parts[_key(inputs)]:
            try:
                answers = self._answers(output, max(self.least, len(inputs)), part)
            except Misfit:
                continue
            if answers is not None:
                self._check(inputs, answers, part, most)
            return

    def _check(self, inputs: torch.Tensor, answers: list[Any], part: Part, most: int) -> None:
        count = len(inputs)
        for at in sorted({round(n * (count - 1) / (most - 1)) for n in range(most)}):
            try:
                text = self._unlike(inputs[at : at + 1], answers[at], part)
            except Exception as error:
                if is_device_fault(error):
                    raise
                text = f"one has no answer when it is alone: {error}"
            if text:
                self._separate(
                    f"its answers depend on what else is in the batch ({text})",
                    "set max_batch=1, or batching='trusted' if that does not matter",
                )
                raise OneByOne

    def _unlike(self, item: torch.Tensor, answer: Any, part: Part) -> str:
        """How the answer differs from that to the task alone."""
        alone = _asked(self._source, item, [0] * self.least, self._device)
        answers = self._answers(alone.output, self.least, part)
        text = "" if answers is None else difference(answers[0], answer, self._slack)
        return "" if text and self._random(self._source, item, alone, part) else text


def _key(inputs: torch.Tensor) -> _Key:
    return inputs.kind if isinstance(inputs, Bundle) else (inputs.ndim, inputs.dtype)


def _twin(module: nn.Module) -> nn.Module:
    """A copy with the same weights in the same memory: what calls leave in it does no harm."""
    shared: dict[int, Any] = {id(weight): weight for weight in module.parameters()}
    try:
        twin: nn.Module = copy.deepcopy(module, shared)
    except Exception as error:  # it holds a lock, a file, or a tensor that was computed
        if is_device_fault(error):
            raise
        return module
    return twin


def _asked(module: Forward, items: torch.Tensor, order: list[int], device: torch.device) -> Sample:
    """The output for items in this order, which later calls do not change."""
    with torch.inference_mode():
        output = asked(module, items[order].to(device))
    try:
        tensors = {id(x): x.detach().clone() for x in leaves(output) if isinstance(x, torch.Tensor)}
        return Sample(order, copy.deepcopy(output, dict[int, Any](tensors)))
    except Exception as error:
        if is_device_fault(error):
            raise
        return Sample(order, output)


def _exported(module: nn.Module) -> tuple[int, int | None]:
    """The least and the largest batch of a module from ``torch.export``, which tells them."""
    ranges = getattr(module, "range_constraints", None)
    if not isinstance(module, torch.fx.GraphModule) or ranges is None:
        return 1, None
    for node in module.graph.nodes:
        shape: Sequence[Any] = getattr(node.meta.get("val"), "shape", ())
        if node.op == "placeholder" and len(shape) > 0:
            return size_range(shape[0], ranges)
    return 1, None
