"""Runs batches of tasks through one module, in whatever thread calls it."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import nn

from asyncinfer.errors import ConfigError, DeviceLost, InputError
from asyncinfer_drivers._shared.steps import Fallbacks, Steps
from asyncinfer_drivers._shared.worker import as_exception
from asyncinfer_drivers._torch import hints
from asyncinfer_drivers._torch.batch import Signature, to_tensor
from asyncinfer_drivers._torch.calling import Calling
from asyncinfer_drivers._torch.compare import probes
from asyncinfer_drivers._torch.device import is_device_fault, synchronize
from asyncinfer_drivers._torch.division import Bare, Division, OneByOne, Source
from asyncinfer_drivers._torch.inputs import Bundle, asked, parts, repeated
from asyncinfer_drivers._torch.threads import Share, bind
from asyncinfer_drivers._torch.variants import Forward

__all__ = ("Runner",)

logger = logging.getLogger("asyncinfer.torch")

#: (position in the batch, its tensor)
_Placed: TypeAlias = tuple[int, torch.Tensor]

#: shapes and dtypes remembered as good; a model that takes ever new ones needs no more
_MAX_ACCEPTED = 32


@dataclass
class Runner:
    """One module on one device, with the steps around it."""

    #: the device's name in errors
    name: str
    module: nn.Module
    device: torch.device
    steps: Steps
    #: ``None`` on an accelerator
    share: Share | None
    slowdown: float
    #: sleeps for that many seconds, or less when closing
    pause: Callable[[float], None]
    #: tasks that the module gets at once at most; ``None``: all there are
    micro_batch: int | None = None
    #: whether the module takes these inputs if it was asked nothing before
    takes: Callable[[torch.Tensor], bool] = lambda inputs: False
    #: raises ``ConfigError`` if what came before makes the answer to these inputs another one
    recall: Callable[..., None] = lambda *inputs: None
    #: the module as it is now and as it is to be called, where that may change
    source: Source | None = None
    #: the largest batch that is asked for
    wanted: int = 256
    #: whether answers may depend on what else is in the batch
    trusted: bool = False

    def __post_init__(self) -> None:
        #: the module, or a faster form of it
        self.forward: Forward = self.module
        #: whose a part of an output is, and what may be run together
        self.division = Division(
            self.name,
            self.source or Bare(self.module),
            self.device,
            self.steps.uncollate,
            wanted=self.wanted,
            trusted=self.trusted,
        )
        #: the last size of a batch that failed though its tasks did not
        self.failed_size = 0
        #: tasks of one shape that are run together at most, for which a call is divided further
        self.part: int | None = None
        #: the tensor of the first task that was answered
        self.first: torch.Tensor | None = None
        #: shapes in the last call with more than one task
        self.shapes = 1
        self._calling: Calling | None = None
        self._accepted: dict[Signature, None] = {}
        self._blamed: dict[Signature, bool] = {}
        self._fallbacks = Fallbacks(self.name, logger)
        self._warned = False
        #: calls that were answered; after how many of them the module is asked what it recalls
        self._calls, self._next_recall = 0, 2
        #: the size of the batch that has just failed
        self._suspect = 0

    def warm_up(self, item: Any, batch: int) -> None:
        """Learn from ``item`` and others like it, and run it; ``ConfigError`` if it fails."""
        if self.share is not None:
            bind(self.share.threads)
        try:
            tensor = self.example(item)
            if batch > 1:
                self.study(tensor)
        except ConfigError:
            raise
        except BaseException as error:
            self._refuse_warm_up(self._blame(error))
        whole = self.steps.collate is not None or self.steps.uncollate is not None
        for size in (1, 2) if whole and batch > 1 else (1,):
            for output in self.run([item] * size):
                if isinstance(output, BaseException):
                    self._refuse_warm_up(output)

    def study(self, item: torch.Tensor) -> None:
        """Learn how outputs are divided from the tensor of one task and others like it."""
        with torch.inference_mode():
            pair = torch.stack(probes(item)[:2])
        try:
            self.division.prepare(pair)
        except ConfigError:
            raise
        except Exception:  # of what is only like the input
            self.division.prepare(pair[:1])

    def _refuse_warm_up(self, error: BaseException) -> NoReturn:
        raise ConfigError(f"{self.name}: the warm-up input failed: {error}") from error

    def example(self, item: Any) -> torch.Tensor:
        """The tensor that the module gets of ``item``, without the batch dimension."""
        with torch.inference_mode():
            tensor = self._taken(self.steps.preprocess(item) if self.steps.preprocess else item)
            return tensor.to(self.device)

    def run(self, batch: Sequence[Any]) -> list[Any]:
        """One output per task, or the exception that is its own fault.

        Raises ``DeviceLost`` if the device failed.
        """
        started = time.perf_counter()
        if self.share is not None:
            bind(self.share.threads)
        outputs = list[Any]()
        while (left := len(batch) - len(outputs)) > 0:
            size = min(left, self.micro_batch or left, self.division.most or left)
            outputs += self._run_part(batch if size == len(batch) else batch[-left:][:size])
        synchronize(self.device)
        if self.slowdown > 1:
            self.pause((self.slowdown - 1) * (time.perf_counter() - started))
        return outputs

    def rehearse(self, size: int) -> None:
        """Compute what a batch of that size takes, of the first task; without the user's steps.

        Raises ``OneByOne``, or whatever the model raises, if it takes no such batch.
        """
        assert self.first is not None  # noqa: S101  # there was one
        division = self.division
        with torch.inference_mode():
            inputs = repeated(self.first, size)
            given = division.padded(inputs) if size < division.least else inputs
            output = division.run(self.forward, given)
        if self.steps.uncollate is None:
            division.tasks(output, given)
        synchronize(self.device)

    def probe(self) -> None:
        """Compute something small on the device; ``DeviceLost`` if that fails."""
        try:
            total = float(torch.ones(2, device=self.device).sum())
            synchronize(self.device)
        except Exception as error:
            raise DeviceLost(self.name, f"failed its probe: {error}") from error
        if total != 2:
            raise DeviceLost(self.name, f"failed its probe: 1 + 1 is {total}")

    def _run_part(self, batch: Sequence[Any]) -> list[Any]:
        outputs = self._run_collated(batch)
        if outputs is None:
            outputs = [None] * len(batch)
            groups = self._grouped(batch, outputs)
            if len(batch) > 1:
                self.shapes = len(groups)
            for signature, group in groups:
                part = self.part or len(group)
                for at in range(0, len(group), part):
                    self._run_group(signature, group[at : at + part], outputs)
        return outputs

    def _run_collated(self, batch: Sequence[Any]) -> list[Any] | None:
        """One output per task if all can be run together by ``collate``, else ``None``."""
        inputs = self._collated(batch)
        if inputs is None:
            return None
        signature = Signature.of(inputs[0])
        try:
            outputs = self._forward(inputs)
        except BaseException as error:
            self._blame(error)
            return None
        self._accept(signature)
        return outputs

    def _collated(self, batch: Sequence[Any]) -> torch.Tensor | None:
        if self.steps.collate is None or not batch:
            return None
        try:
            with torch.inference_mode():
                made = self.steps.collate(batch)
                several = isinstance(made, Mapping | tuple)
                inputs = self._taken(made) if several else torch.as_tensor(made)
                if len(batch) == 1:  # it may be the caller's own, which a model may write to
                    inputs = inputs.clone()
            for tensor in parts(inputs):
                if tensor.shape[:1] != (len(batch),):
                    raise ValueError(f"made {list(tensor.shape)} of {len(batch)} inputs")
        except BaseException as error:
            self._fallbacks.note("collate", self._blame(error))
            return None
        return inputs

    def _grouped(
        self, batch: Sequence[Any], outputs: list[Any]
    ) -> list[tuple[Signature, list[_Placed]]]:
        """Tasks that can be stacked, the largest group first; failures go to ``outputs``."""
        placed: list[_Placed] = []
        preprocess = self.steps.preprocess
        with torch.inference_mode():
            for index, item in enumerate(batch):
                try:
                    placed.append((index, self._taken(preprocess(item) if preprocess else item)))
                except BaseException as error:
                    outputs[index] = self._blame(error)
        return _by_signature(placed)

    def _run_group(self, signature: Signature, group: list[_Placed], outputs: list[Any]) -> None:
        self._suspect = 0
        several = len(group) > 1 and not self.division.alone
        if several and self._run_together(signature, group, outputs):
            return
        good = 0
        for index, tensor in group:
            try:
                outputs[index] = self._forward(_stack([tensor]))[0]
            except BaseException as error:
                outputs[index] = self._refusal(signature, tensor, self._blame(error))
            else:
                self._accept(signature)
                good += 1
        if self._suspect == good == len(group):
            self.failed_size = good
            self.division.limit(good // 2)

    def _run_together(self, signature: Signature, group: list[_Placed], outputs: list[Any]) -> bool:
        """Run the group as one batch; ``False`` if the model raises, whosever fault it is."""
        try:
            results = self._forward(_stack([tensor for _, tensor in group]))
        except OneByOne:
            return False
        except BaseException as error:
            self._note_failed_batch(len(group), self._blame(error))
            return False
        self._accept(signature)
        for (index, _), result in zip(group, results, strict=True):
            outputs[index] = result
        return True

    def _forward(self, inputs: torch.Tensor) -> list[Any]:
        """One output per row of ``inputs``, a copy that the model may change.

        Raises ``OneByOne`` if these tasks cannot be run together.
        """
        count, division = len(inputs), self.division
        division.prepare(inputs)
        if division.most is not None and count > division.most:
            raise OneByOne
        before = inputs.clone() if count > 1 and division.due(count) else None
        first = self.first
        self._calls += 1
        recalled = inputs[:1].clone() if self._calls >= self._next_recall else None
        with torch.inference_mode():
            if first is None:
                first = inputs[0].clone().to(self.device)
            given = inputs.to(self.device)
            if count < division.least:
                given = division.padded(given)
            try:
                output = division.run(self.forward, given)
            except Exception as error:
                if is_device_fault(error) or not division.other_sizes(given):
                    raise
                given = division.padded(given)
                output = asked(self.forward, given)
            outputs = self._uncollated(output, len(given))
        if outputs is None:  # not in inference mode, which limits what its tensors may be used for
            outputs = [self._finish(part) for part in division.tasks(output, given)[:count]]
        if before is not None:
            division.check(before, output)
        if recalled is not None and division.least == 1:
            self._recall(recalled.to(self.device), first.unsqueeze(0))
        self.first = first
        return outputs[:count]

    def _recall(self, *asked: torch.Tensor) -> None:
        """After the second call, the fourth, ... for ever, and after each once it has failed."""
        self.recall(*asked)
        self._next_recall = 2 * self._calls

    def _uncollated(self, output: Any, count: int) -> list[Any] | None:
        if self.steps.uncollate is None:
            return None
        try:
            outputs = list(self.steps.uncollate(output))
            if len(outputs) != count:
                raise ValueError(f"made {len(outputs)} outputs for {count} tasks")
        except BaseException as error:
            self._fallbacks.note("uncollate", self._blame(error))
            return None
        return outputs

    def _taken(self, item: Any) -> torch.Tensor:
        """The tensor of a task, or its several tensors as one ``Bundle``."""
        if isinstance(item, torch.Tensor | np.ndarray) or not isinstance(item, Mapping | tuple):
            return to_tensor(item)
        if self._calling is None:
            self._calling = Calling.of(self.module)
        return self._calling.taken(item)

    def _finish(self, row: Any) -> Any:
        if self.steps.postprocess is None:
            return row
        try:
            return self.steps.postprocess(row)
        except BaseException as error:
            return self._blame(error)

    def _blame(self, error: BaseException) -> Exception:
        """The exception to put in the task's place, unless the device is to blame."""
        if is_device_fault(error):
            first = str(error).strip().partition("\n")[0]
            raise DeviceLost(self.name, first or type(error).__name__) from error
        if isinstance(error, DeviceLost | ConfigError):  # was told apart further in
            raise error
        return as_exception(_light(error))

    def _refusal(self, signature: Signature, tensor: torch.Tensor, error: Exception) -> Exception:
        """The model's own error, or an ``InputError`` if other shapes are known to work."""
        if signature in self._accepted:
            return error
        good = next(iter(self._accepted), None)
        hint = hints.for_input(error, signature.shape, good and good.shape)
        if good is None and not hint:
            return error
        refused: Exception
        if good is not None and self._takes_alone(signature, tensor):
            refused = RuntimeError(
                f"the model failed with an input of {signature}, which it takes if it is asked "
                f"nothing else before: it keeps something of earlier inputs, such as of {good}"
            )
        else:
            accepted = "" if good is None else f", it has accepted {good}"
            hint = hint or "convert the input, or give the driver a preprocess"
            first = str(error).strip().partition("\n")[0]
            refused = InputError(
                f"the model refused an input of {signature}{accepted}: {hint} "
                f"({type(error).__name__}: {first})"
            )
        refused.__cause__ = error
        return refused

    def _takes_alone(self, signature: Signature, tensor: torch.Tensor) -> bool:
        """Whether the module is to blame, not the input; asked once for each shape and dtype."""
        if signature not in self._blamed:
            if len(self._blamed) >= _MAX_ACCEPTED:
                self._blamed.clear()
            with torch.inference_mode():
                self._blamed[signature] = self.takes(_stack([tensor]).to(self.device))
        return self._blamed[signature]

    def _accept(self, signature: Signature) -> None:
        if len(self._accepted) < _MAX_ACCEPTED:
            self._accepted[signature] = None

    def _note_failed_batch(self, size: int, error: Exception) -> None:
        self._suspect = size
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: a batch of %d failed and its tasks are run one by one; if the model takes no "
                "batches, set max_batch=1 (%s)", self.name, size, error,
            )  # fmt: skip


def _by_signature(placed: list[_Placed]) -> list[tuple[Signature, list[_Placed]]]:
    """The largest group first."""
    if not placed:
        return []
    first = Signature.of(placed[0][1])
    shape, dtype = first.shape, first.dtype
    if not first.bundle and all(
        tensor.shape == shape and tensor.dtype == dtype and not isinstance(tensor, Bundle)
        for _, tensor in placed
    ):
        return [(first, placed)]  # as nearly always
    groups: dict[Signature, list[_Placed]] = {}
    for index, tensor in placed:
        groups.setdefault(Signature.of(tensor), []).append((index, tensor))
    return sorted(groups.items(), key=lambda entry: len(entry[1]), reverse=True)


@torch.inference_mode()
def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tensors)


def _light(error: BaseException) -> BaseException:
    """``error`` with its traceback as a note: frames would keep the batch and the model alive.

    The caller may keep many errors, and each frame leads to those it was called from.
    """
    if not isinstance(error, InputError) and not hasattr(error, "__notes__"):
        error.add_note("".join(traceback.format_exception(error)).rstrip())
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
