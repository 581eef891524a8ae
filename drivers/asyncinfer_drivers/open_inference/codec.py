"""From inputs to requests and from replies to results: the steps around the server's model."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from asyncinfer.errors import InputError, ProtocolError
from asyncinfer_drivers._shared.steps import Fallbacks, Steps
from asyncinfer_drivers._shared.worker import as_exception
from asyncinfer_drivers.open_inference.specs import ModelSpec, TensorSpec, fits
from asyncinfer_drivers.open_inference.tensors import (
    DATATYPES,
    Array,
    Given,
    Message,
    from_received,
    given,
    is_torch,
    to_array,
)
from asyncinfer_drivers.open_inference.transport import Transport

__all__ = ("Codec", "Job")

logger = logging.getLogger("asyncinfer.open_inference")


#: dimensions that an array of numpy can have
_MOST_DIMENSIONS = 64

#: most numbers in a request of zeros: a server may claim inputs of any size
_MOST_ZEROS = 1 << 24


class Job(NamedTuple):
    """One request, and whose inputs are in it."""

    #: places in the batch
    indexes: Sequence[int]
    request: Message
    #: whether its results are to be torch tensors, because its inputs were
    torch: bool


class Codec:
    """Makes requests of tasks, and results of replies, while one server is open."""

    def __init__(self, name: str, spec: ModelSpec, steps: Steps, transport: Transport) -> None:
        self._name = name
        self._spec = spec
        self._steps = steps
        self._transport = transport
        self._wanted = [one.name for one in spec.outputs]
        self._outputs = {one.name: one for one in spec.outputs}
        self._inputs = {one.name: one for one in spec.inputs}
        self._needed = frozenset(one.name for one in spec.needed)
        self._shapes = {
            one.name: (one.row if spec.batched else one.shape) or () for one in spec.inputs
        }
        always = spec.needed or spec.inputs
        #: the input that a task is which is no mapping, if there is but one
        self._only = always[0] if len(always) == 1 else None
        #: cached: most outputs have the shape of an earlier one
        self._check = lru_cache(maxsize=64)(self._checked)
        self._stackable = self._only if spec.batched else None
        plain = self._stackable is not None and self._stackable.datatype != "BYTES"
        self._plain = plain and not (steps.preprocess or steps.collate)
        self._told_of_null = False
        self._fallbacks = Fallbacks(name, logger)

    # ---- requests

    def requests(self, batch: Sequence[Any]) -> tuple[list[Job], list[Any]]:
        """The requests for a batch, and an output for each task: ``None``, or its error."""
        outputs: list[Any] = [None] * len(batch)
        whole = self._as_they_are if self._plain else self._collated
        if batch and (job := whole(batch)) is not None:
            return [job], outputs
        groups: dict[Any, list[tuple[int, Mapping[str, Array]]]] = {}
        for index, item in enumerate(batch):
            try:
                made = item if self._steps.preprocess is None else self._steps.preprocess(item)
                arrays, torch = self._arrays(made)
            except BaseException as error:
                outputs[index] = as_exception(error)
            else:
                alike = torch, *[(name, array.shape) for name, array in arrays.items()]
                groups.setdefault(alike, []).append((index, arrays))
        return [self._job(group, torch) for (torch, *_), group in groups.items()], outputs

    def zeros(self, count: int) -> Job | None:
        """A request for ``count`` tasks of zeros; ``None`` if there is no saying what those are."""
        needed = self._spec.needed or self._spec.inputs
        shapes = [self._shapes[one.name] for one in needed]
        texts = any(one.datatype == "BYTES" for one in needed)
        if texts or any(-1 in shape for shape in shapes):
            return None
        if count * sum(map(math.prod, shapes)) > _MOST_ZEROS:
            return None
        arrays = {
            one.name: np.zeros(shape, DATATYPES[one.datatype])
            for one, shape in zip(needed, shapes, strict=True)
        }
        return self._job([(index, arrays) for index in range(count)], False)

    def _as_they_are(self, batch: Sequence[Any]) -> Job | None:
        """All inputs in one request, if they are such arrays as the model takes."""
        one, shape = self._stackable, getattr(batch[0], "shape", ())
        assert one is not None  # noqa: S101  # it is called for those only
        datatype = DATATYPES[one.datatype]
        for item in batch:
            if type(item) is not np.ndarray or item.dtype != datatype or item.shape != shape:
                return None
            if not item.flags.c_contiguous:
                return None
        if not fits(one.row, shape):
            return None
        tensor = given(one.name, one.datatype, (len(batch), *shape), batch)
        return Job(range(len(batch)), self._transport.encode([tensor], self._wanted), False)

    def _collated(self, batch: Sequence[Any]) -> Job | None:
        """All inputs in one request, if ``collate`` can do that."""
        one = self._stackable
        if self._steps.collate is None or one is None:
            return None
        try:
            made = self._steps.collate(batch)
            array = to_array(made, one.datatype, one.name)
            if array.shape[:1] != (len(batch),) or not fits(one.row, array.shape[1:]):
                raise ValueError(f"made {list(array.shape)} of {len(batch)} inputs")
        except Exception as error:
            self._fallbacks.note("collate", error)
            return None
        tensor = given(one.name, one.datatype, array.shape, [array])
        request = self._transport.encode([tensor], self._wanted)
        return Job(range(len(batch)), request, is_torch(made))

    def _arrays(self, made: Any) -> tuple[dict[str, Array], bool]:
        """The arrays by the names of the model's inputs; and whether they were torch tensors."""
        items = self._named(made)
        arrays = dict[str, Array]()
        for one in self._spec.inputs:
            if one.name not in items:
                continue
            array, wanted = (
                to_array(items[one.name], one.datatype, one.name),
                self._shapes[one.name],
            )
            if not fits(wanted, array.shape):
                text = f"input {one.name!r} has shape {list(array.shape)}"
                raise InputError(f"{text}, the model takes {list(wanted)}")
            arrays[one.name] = array
        return arrays, any(map(is_torch, items.values()))

    def _named(self, made: Any) -> Mapping[str, Any]:
        """What was given, by the names of the model's inputs; ``None`` is no optional one."""
        items = self._named_all(made)
        absent = [n for n, item in items.items() if item is None and n not in self._needed]
        return {n: item for n, item in items.items() if n not in absent} if absent else items

    def _named_all(self, made: Any) -> Mapping[str, Any]:
        if isinstance(made, Mapping):
            if not (made and self._needed <= made.keys() <= self._inputs.keys()):
                raise InputError(
                    f"the model's inputs are {self._listed()}, not {', '.join(map(str, made))}"
                )
            return made
        if self._only is not None:
            return {self._only.name: made}
        if isinstance(made, tuple | list):
            for names in (list(self._inputs), [one.name for one in self._spec.needed]):
                if len(made) == len(names):
                    return dict(zip(names, made, strict=True))
        count = len(self._inputs)
        raise InputError(f"the model has {count} inputs: give a mapping by their names")

    def _listed(self) -> str:
        optional = [f"{one.name} (optional)" for one in self._spec.inputs if one.optional]
        return ", ".join([one.name for one in self._spec.needed] + optional)

    def _job(self, group: Sequence[tuple[int, Mapping[str, Array]]], torch: bool) -> Job:
        """One request for tasks whose arrays have the same names and shapes."""
        first = (len(group),) if self._spec.batched else ()
        tensors = list[Given]()
        for name, array in group[0][1].items():
            column = [arrays[name] for _, arrays in group]
            datatype = self._inputs[name].datatype
            tensors.append(given(name, datatype, first + array.shape, column))
        request = self._transport.encode(tensors, self._wanted)
        return Job([index for index, _ in group], request, torch)

    # ---- replies

    def results(self, job: Job, reply: Message) -> list[Any]:
        """One result for each task of the request; ``ProtocolError`` if the reply is no answer."""
        count = len(job.indexes)
        try:
            arrays = self._received(reply, count)
        except (ValueError, TypeError, OverflowError) as error:
            raise ProtocolError(self._name, f"the server's answer is wrong: {error}") from error
        results = self._uncollated(arrays, count, job.torch)
        return self._rows(arrays, count, job.torch) if results is None else results

    def _received(self, reply: Message, count: int) -> dict[str, Array]:
        """The arrays of a reply by their names, those that were wanted."""
        arrays = dict[str, Array]()
        for tensor in self._transport.decode(reply):
            self._check(tensor.name, tensor.datatype, tensor.shape, count)
            if tensor.raw is None and None in tensor.values:
                self._note_null(tensor.name)
            arrays[tensor.name] = from_received(tensor)
        if list(arrays) == self._wanted:
            return arrays
        if missing := [name for name in self._wanted if name not in arrays]:
            raise ValueError(f"output {missing[0]!r} is missing")
        if not arrays:
            raise ValueError("no outputs")
        return {name: arrays[name] for name in self._wanted or arrays}

    def _checked(self, name: str, datatype: str, shape: tuple[int, ...], count: int) -> None:
        """Raise ``ValueError`` unless an output for that many tasks may look like this."""
        came = TensorSpec(name, datatype, shape)
        said = self._outputs.get(name, came)
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"output {name!r} of {len(shape)} dimensions")
        if self._spec.batched and shape[:1] != (count,):
            raise ValueError(f"output {came} for {count} inputs")
        if not came.fits(said):
            text = "if that is right, give outputs= and overrule=True"
            raise ValueError(f"output {came} came as {said} was expected ({text})")

    def _note_null(self, name: str) -> None:
        if not self._told_of_null:
            self._told_of_null = True
            logger.warning(
                "%s: the server's JSON has null for numbers of output %r, given as NaN; but "
                "KServe and MLServer write it for an infinity too: binary=True, or gRPC, tells "
                "which", self._name, name,
            )  # fmt: skip

    def _uncollated(self, arrays: Mapping[str, Array], count: int, torch: bool) -> list[Any] | None:
        if self._steps.uncollate is None or not self._spec.batched or len(arrays) != 1:
            return None
        (array,) = arrays.values()
        try:
            results = list(self._steps.uncollate(_own(array, torch)))
            if len(results) != count:
                raise ValueError(f"made {len(results)} outputs for {count} tasks")
        except Exception as error:
            self._fallbacks.note("uncollate", error)
            return None
        return results

    def _rows(self, arrays: Mapping[str, Array], count: int, torch: bool) -> list[Any]:
        columns = [self._column(array, count, torch) for array in arrays.values()]
        rows = columns[0]
        if len(columns) > 1:
            rows = [dict(zip(arrays, row, strict=True)) for row in zip(*columns, strict=True)]
        step = self._steps.postprocess
        return rows if step is None else [_finished(step, row) for row in rows]

    def _column(self, array: Array, count: int, torch: bool) -> list[Any]:
        """One output of each task."""
        if not self._spec.batched:
            return [_own(array, torch)]
        return [_own(array[index, ...], torch) for index in range(count)]


def _finished(step: Callable[[Any], Any], row: Any) -> Any:
    try:
        return step(row)
    except BaseException as error:
        return as_exception(error)


def _own(array: Array, torch: bool) -> Any:
    """A copy that may be changed, and does not keep the whole reply in memory."""
    copy = array.copy()
    return sys.modules["torch"].from_numpy(copy) if torch and copy.dtype.kind != "O" else copy
