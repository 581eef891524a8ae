"""One served model: a dispatcher over its devices, and what its tensors look like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import Driver
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.serve.errors import BadRequest, Internal, ModelFailed, quoted
from asyncinfer.serve.tensors import Array, TensorSpec, datatype_of
from asyncinfer.stats import DispatcherStats

__all__ = ("VERSION", "Counters", "Served", "stacked")

#: the one version of every model
VERSION = "1"

_TENSORS = (
    "what is served are tensors of numbers; put a module around the model that returns a tensor, "
    "or a dict of tensors, in which lists of parts of unequal length are padded"
)
_ALIKE = "put a module around the model that returns the same outputs for all inputs"

#: what a request goes through, as the protocol's statistics have it
_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")

#: rows of a request from which on they are a stream
_STREAM = 4

#: seconds for which a snapshot of the devices is good
_FRESH = 0.1


@dataclass
class Counters:
    """Requests of one model since the start, as the protocol's statistics have them."""

    succeeded: int = 0
    succeeded_ns: int = 0
    failed: int = 0
    failed_ns: int = 0
    rows: int = 0
    #: milliseconds since the epoch
    last_ms: int = 0
    #: seconds of those that succeeded, by what was done in them
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))
    #: requests, seconds they were with the dispatcher, seconds devices were busy, calls of devices
    _shared: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)
    _dispatched: float = 0.0

    def count(self, times: Sequence[float], rows: int) -> None:
        """One more request; it failed if it has no rows to show.

        ``times``: when it was received, when its rows were there, when their outputs were, and when
        it was answered; as far as it came.
        """
        spent = int(1e9 * (times[-1] - times[0]))
        if not rows:
            self.failed += 1
            self.failed_ns += spent
            return
        received, decoded, done, answered = times
        self.succeeded += 1
        self.succeeded_ns += spent
        self.rows += rows
        self.last_ms = time.time_ns() // 1_000_000
        self.stages["compute_input"] += decoded - received
        self.stages["compute_output"] += answered - done
        self._dispatched += done - decoded

    def share(self, busy: float, calls: int) -> None:
        """Tell waiting from running, of the requests since the last time.

        ``busy`` seconds were ``calls`` of devices under way: as long as one takes, a request is
        taken to have run, and the rest of its time to have waited.
        """
        now = (self.succeeded, self._dispatched, busy, calls)
        requests, seconds, worked, made = (b - a for a, b in zip(self._shared, now, strict=True))
        ran = min(seconds, requests * worked / made) if made > 0 else 0.0
        self.stages["compute_infer"] += ran
        self.stages["queue"] += seconds - ran
        self._shared = now


@dataclass
class Served:
    """A model under its name. An async context manager: its devices are open inside."""

    name: str
    drivers: Sequence[Driver[Any, Any]]
    #: keyword arguments of the dispatcher
    options: Mapping[str, Any]
    #: one task as the model takes it, without the batch dimension: an array, or several by name
    example: Array | Mapping[str, Array]
    #: its shape, with -1 where other sizes will do too; of several inputs, by name
    shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    #: what it runs on, for people
    platform: str = ""
    #: names of the inputs that a request may leave out
    optional: frozenset[str] = frozenset()
    counters: Counters = field(default_factory=Counters)

    async def __aenter__(self) -> Served:
        self.inputs = self._inputs()
        self._snapshot: tuple[float, DispatcherStats] | None = None
        async with AsyncExitStack() as stack:
            self.dispatcher = Dispatcher(self.drivers, **self.options)
            await stack.enter_async_context(self.dispatcher)
            self.outputs = await self._probe()
            self.output_specs = {spec.name: spec for spec in self.outputs}
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    def _inputs(self) -> tuple[TensorSpec, ...]:
        shapes = self.shape if isinstance(self.shape, Mapping) else {"input": self.shape}
        found = list[TensorSpec]()
        for name, array in _by_name(self.example).items():
            datatype = datatype_of(array.dtype, f"the input {name!r} of model {self.name!r}")
            found.append(TensorSpec(name, datatype, shapes[name], name in self.optional))
        return tuple(found)

    async def _probe(self) -> tuple[TensorSpec, ...]:
        """The outputs' specs, from one run of the example."""
        output = await self._run(self.example)
        if isinstance(self.example, Mapping) and self.optional:
            needed = {n: array for n, array in self.example.items() if n not in self.optional}
            output = await self._run(needed) if needed else output
        try:
            found = named(output)
        except Internal as error:
            raise ConfigError(f"model {self.name!r} cannot be served: {error}") from error
        fixed = all(-1 not in spec.shape for spec in self.inputs)
        return tuple(
            TensorSpec(
                name,
                datatype_of(array.dtype, f"output {name!r} of model {self.name!r}"),
                # what was 0 once, as of boxes in a black picture, is not always so
                tuple(size or -1 for size in array.shape) if fixed else (-1,) * array.ndim,
            )
            for name, array in found.items()
        )

    async def _run(self, example: Array | Mapping[str, Array]) -> Any:
        try:
            return await self.dispatcher.infer(example)
        except AsyncInferError as error:
            types = {spec.name: spec.datatype for spec in self.inputs}
            shown = [f"{list(a.shape)} {types[n]}" for n, a in _by_name(example).items()]
            if isinstance(example, Mapping):
                shown = [f"{name!r} {text}" for name, text in zip(example, shown, strict=True)]
            raise ConfigError(
                f"model {self.name!r} does not run on an example of {', '.join(shown)}: {error}; "
                f"give {'its inputs' if isinstance(example, Mapping) else 'its shape'} in "
                "[serve.models]"
            ) from error

    @property
    def stats(self) -> DispatcherStats:
        """The dispatcher's, at most a moment old."""
        now = time.monotonic()
        if self._snapshot is None or now - self._snapshot[0] > _FRESH:
            self._snapshot = now, self.dispatcher.stats()
        return self._snapshot[1]

    @property
    def ready(self) -> bool:
        """Whether at least one device answers, or may: see ``Dispatcher.ready``."""
        return self.dispatcher.ready

    def wanted(self, names: Sequence[str] | None) -> Sequence[str]:
        """The names of the outputs of a request; ``BadRequest`` for one there is not."""
        for name in names or ():
            if name not in self.output_specs:
                raise BadRequest(
                    f"model {self.name!r} has no output {quoted(name)}; there is "
                    f"{', '.join(self.output_specs)}"
                )
        return list(self.output_specs) if names is None else names

    async def run(
        self, inputs: Mapping[str, Array], *, priority: int = 0, client: Hashable | None = None
    ) -> list[dict[str, Array]]:
        """The outputs of each row, by name.

        A few rows are a call each, and batches are made of the calls of all clients; more rows are
        a stream, which costs less a row. Clients take turns either way.
        """
        tasks = self._tasks(inputs)
        infer = partial(self.dispatcher.infer, priority=priority, client=client)
        if len(tasks) == 1:
            return [self._checked(await infer(tasks[0]))]
        if len(tasks) >= _STREAM:
            async with self.dispatcher.stream(tasks, priority=priority, client=client) as stream:
                return [self._checked(output) async for output in stream]
        calls = [asyncio.ensure_future(infer(task)) for task in tasks]
        try:
            return [self._checked(output) for output in await asyncio.gather(*calls)]
        except BaseException:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            raise

    def _tasks(self, inputs: Mapping[str, Array]) -> list[Any]:
        if not isinstance(self.example, Mapping):
            return list(next(iter(inputs.values())))
        return [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]

    def _checked(self, output: Any) -> dict[str, Array]:
        """A row's outputs, which have to be those of the example; else ``Internal``."""
        found = named(output)
        for spec in self.outputs:
            array = found.get(spec.name)
            if array is not None and array.dtype == spec.dtype:  # as nearly always
                continue
            if array is None or not np.can_cast(array.dtype, spec.dtype, "safe"):
                what = "missing" if array is None else f"of the dtype {array.dtype}"
                raise Internal(
                    f"output {spec.name!r} of model {self.name!r} is {what} for this input, and "
                    f"was {spec.datatype} for the model's example: {_ALIKE}"
                )
        return {spec.name: found[spec.name] for spec in self.outputs}

    def notice(self, outputs: Mapping[str, Array]) -> None:
        """Tell a size as any once it differs from the example's: some depend on the numbers."""
        for at, spec in enumerate(self.outputs):
            shape = outputs[spec.name].shape[1:]
            if shape == spec.shape or len(shape) != len(spec.shape):
                continue
            sizes = tuple(a if a == b else -1 for a, b in zip(spec.shape, shape, strict=True))
            if sizes != spec.shape:
                wider = replace(spec, shape=sizes)
                self.outputs = (*self.outputs[:at], wider, *self.outputs[at + 1 :])

    def metadata(self) -> dict[str, Any]:
        """As the protocol describes a model."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [spec.metadata() for spec in self.inputs],
            "outputs": [output.metadata() for output in self.outputs],
        }


def _by_name(example: Array | Mapping[str, Array]) -> Mapping[str, Array]:
    return example if isinstance(example, Mapping) else {"input": example}


def stacked(results: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of all rows by name, batch first.

    Raises ``ModelFailed`` if they are no tensor together: the request is as the metadata asks.
    """
    if len(results) == 1:
        return {name: array[None] for name, array in results[0].items()}
    found: dict[str, Array] = {}
    for name in results[0]:
        try:
            found[name] = np.stack([row[name] for row in results])
        except ValueError as error:
            raise ModelFailed(
                f"output {name!r} differs in shape from row to row, so there is no tensor of all: "
                "send one row in a request, or have the model pad its outputs"
            ) from error
    return found


def named(output: Any) -> dict[str, Array]:
    """A task's output, a tensor or several, as arrays by name; what is ``None`` is left out.

    Raises ``Internal`` for what the protocol has no tensor for.
    """
    if isinstance(output, Mapping):
        parts = {str(name): value for name, value in output.items()}
    elif isinstance(output, tuple | list):
        parts = {f"output{index}": value for index, value in enumerate(output)}
    else:
        parts = {"output": output}
    found = {name: _array(value, name) for name, value in parts.items() if value is not None}
    if not found:
        raise Internal(f"output {', '.join(map(repr, parts)) or 'output'} is None: {_TENSORS}")
    return found


def _array(value: Any, name: str) -> Array:
    try:
        array = _numbers(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Internal(
            f"output {name!r}, a {type(value).__name__}, is no tensor: {_TENSORS}"
        ) from error
    if array.dtype.hasobject:
        raise Internal(f"output {name!r} holds more than numbers: {_TENSORS}")
    return array


def _numbers(value: Any) -> Array:
    try:
        return np.asarray(value)
    except TypeError:  # a torch tensor in bfloat16, which numpy has not
        if not hasattr(value, "float"):
            raise
        return np.asarray(value.float())
