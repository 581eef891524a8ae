"""The server without a transport: a request in, its tensors out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Any, TypeVar

from asyncinfer.serve.errors import (
    BadRequest,
    Internal,
    NotFound,
    ServeError,
    TooMany,
    Unavailable,
    as_answer,
    quoted,
)
from asyncinfer.serve.gate import Gate
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.metrics import Metrics
from asyncinfer.serve.served import VERSION, Served, stacked
from asyncinfer.serve.tensors import Array

__all__ = ("EXTENSIONS", "Core", "Job", "Request", "logger", "option")

logger = logging.getLogger("asyncinfer.serve")

#: of the protocol, as the metadata lists them
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository(index)",
    "schedule_policy",
    "statistics",
)

#: bytes of a body that are worked on where they are; more goes to a thread
_INLINE = 64 * 1024

#: Triton's words, which its clients look for
_UNKNOWN = "Request for unknown model:"

_ENDING = "the server is shutting down"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One inference, decoded."""

    #: by the names of the model's inputs, batch first, all of one length
    inputs: Mapping[str, Array]
    #: names of the outputs wanted; ``None`` for all
    outputs: Sequence[str] | None = None
    #: seconds it may take; ``None`` for the server's own limit
    timeout: float | None = None
    #: 1 is the most urgent; 0 for the default
    priority: int = 0

    @property
    def count(self) -> int:
        """Its rows."""
        return len(next(iter(self.inputs.values())))


class Core:
    """The models, who may come in, and what is counted."""

    def __init__(self, models: Iterable[Served], limits: Limits, name: str = "asyncinfer") -> None:
        self.limits = limits
        #: what it calls itself
        self.name = name
        self.gate = Gate(limits)
        self.version = version("asyncinfer")
        #: by name, once they are open
        self.models: Mapping[str, Served] = {}
        self._given = tuple(models)
        self.metrics = Metrics(self.gate, self.models_open)
        # one thread: its memory is what one body needs, and the event loop has one rival
        self._thread = ThreadPoolExecutor(1, "asyncinfer-serve")

    async def __aenter__(self) -> Core:
        async with AsyncExitStack() as stack:
            stack.callback(self._thread.shutdown, wait=True, cancel_futures=True)
            for served in self._given:
                await stack.enter_async_context(served)
            self._stack = stack.pop_all()
        self.models = {served.name: served for served in self._given}
        self.gate.closed = None
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.gate.close(_ENDING)
        for served in self.models_open():  # what was to be finished has been: see drain
            await served.dispatcher.close()
        await self._stack.__aexit__(*exc_info)

    async def drain(self, timeout: float) -> bool:
        """Admit nothing more, wait for what is in work; whether all of it was finished."""
        self.gate.close(_ENDING)
        try:
            async with asyncio.timeout(timeout):
                await self.gate.idle()
        except TimeoutError:
            return False
        return True

    def models_open(self) -> Iterable[Served]:
        """All models whose devices are open."""
        return self.models.values()

    def totals(self) -> dict[str, int]:
        """What was answered since the start."""
        counters = [served.counters for served in self.models_open()]
        return {
            "requests": sum(counter.succeeded for counter in counters),
            "failed": sum(counter.failed for counter in counters),
            "rows": sum(counter.rows for counter in counters),
        }

    @property
    def ready(self) -> bool:
        """Whether requests are admitted and every model has a device that answers."""
        return not self.gate.closed and all(served.ready for served in self.models.values())

    def model(self, name: str, wanted: str = "") -> Served:
        """The model of that name and version.

        Raises ``NotFound``, and ``Unavailable`` while no model is open yet.
        """
        served = self.models.get(name)
        if served is None:
            if self.gate.closed and not self.models:
                raise Unavailable(self.gate.closed)
            known = ", ".join(self.models) or "none"
            raise NotFound(f"{_UNKNOWN} {quoted(name)} is not found; there is {known}")
        if wanted not in ("", VERSION):
            raise NotFound(
                f"{_UNKNOWN} {name!r} version {quoted(wanted)} is not found, only {VERSION}"
            )
        return served

    def job(self, protocol: str) -> Job:
        """One request from its admission to its answer: ``with``."""
        return Job(self, protocol)

    async def apart(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """Run ``work``: here if it has few bytes to work on, else in a thread."""
        if size <= _INLINE:
            return work(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, *arguments)


class Job:
    """One request from its admission to its answer, counted; errors become answers."""

    def __init__(self, core: Core, protocol: str) -> None:
        self._core = core
        self._protocol = protocol
        self._served: Served | None = None
        self._rows = 0
        #: whose it is: address and connection
        self.client: tuple[str, str] | None = None
        #: when it was received, when its rows were there, and when their outputs were
        self._times: list[float] = []

    def __enter__(self) -> Job:
        self._started = time.perf_counter()
        try:
            self._core.gate.enter()
        except Exception as error:
            self._end(type(self._refused(error)).__name__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._core.gate.leave()
        if error is None:
            self._end("ok")
        elif isinstance(error, Exception):
            answer = self._refused(error)
            self._end(type(answer).__name__)
            if answer is not error:
                raise answer from error
        else:
            self._end("cancelled")

    def model(self, name: str, wanted: str = "") -> Served:
        """The model it is for. Raises ``NotFound``."""
        self._served = self._core.model(name, wanted)
        return self._served

    def received(self) -> None:
        """All of it has come."""
        self._times = [time.perf_counter()]

    async def infer(self, request: Request) -> dict[str, Array]:
        """The outputs by name, in the order they were asked for."""
        served = self._served
        if served is None:
            raise RuntimeError("model() comes first")
        wanted = served.wanted(request.outputs)
        self._times.append(time.perf_counter())
        limit, count = self._core.limits.request_timeout, request.count
        self._core.gate.add_rows(count)
        try:
            async with asyncio.timeout(min(request.timeout or limit, limit)):
                results = await served.run(
                    request.inputs, priority=request.priority, client=self.client
                )
                self._times.append(time.perf_counter())
                size = len(results) * sum(array.nbytes for array in results[0].values())
                outputs = await self._core.apart(size, stacked, results)
        finally:
            self._core.gate.rows -= count
        self._rows = count
        served.notice(outputs)
        return {name: outputs[name] for name in wanted}

    def _refused(self, error: Exception) -> ServeError:
        """What to answer, logged if it is a fault of the server."""
        answer = as_answer(error)
        if isinstance(answer, Internal):
            logger.error("a %s request failed", self._protocol, exc_info=error)
        return answer

    def _end(self, outcome: str) -> None:
        """Count it."""
        now, served = time.perf_counter(), self._served
        if served is not None and outcome != TooMany.__name__:
            self._times.append(now)
            served.counters.count(self._times, self._rows if outcome == "ok" else 0)
        name, seconds = served.name if served else "", now - self._started
        self._core.metrics.request(name, self._protocol, outcome, seconds, self._rows)


def option(parameters: Mapping[str, Any], name: str, kind: type[T], default: T) -> T:
    """A request's parameter; ``BadRequest`` if it is of another type."""
    value = parameters.get(name, default)
    if type(value) is not kind:
        raise BadRequest(f"the parameter {name!r} must be of type {kind.__name__}")
    return value
