"""``OpenInferenceDriver``: a model of a server that speaks the Open Inference Protocol v2."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asyncinfer.driver import ServiceTime
from asyncinfer.errors import (
    AsyncInferError,
    ConfigError,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    ProtocolError,
)
from asyncinfer_drivers._shared.options import takes
from asyncinfer_drivers._shared.session import SessionDriver
from asyncinfer_drivers._shared.sharing import host_at
from asyncinfer_drivers._shared.timing import measured
from asyncinfer_drivers.open_inference.access import Address
from asyncinfer_drivers.open_inference.codec import Codec, Job
from asyncinfer_drivers.open_inference.faults import Failure, while_opening, while_probing
from asyncinfer_drivers.open_inference.options import OpenInferenceOptions as OpenInferenceOptions
from asyncinfer_drivers.open_inference.session import Session
from asyncinfer_drivers.open_inference.sizes import Sizes
from asyncinfer_drivers.open_inference.specs import ModelSpec, model_spec, tensor_specs
from asyncinfer_drivers.open_inference.transport import Transport

__all__ = ("OpenInferenceDriver", "OpenInferenceOptions")

logger = logging.getLogger("asyncinfer.open_inference")

#: bytes that are converted on the event loop: copying that many takes less than a millisecond
_LOOP_BYTES = 1 << 20
#: seconds until a model that is not ready is asked again whether it is, and for how long: a server
#: may say so while it is only slow
_ASK_AGAIN, _ASK_FOR = 0.5, 3.0


class OpenInferenceDriver(SessionDriver[Session]):
    """Runs one model of a server over the Open Inference Protocol v2 (KServe v2).

    Its arguments are the fields of ``OpenInferenceOptions``, which says what each means.

    ``open`` asks the server for the names, datatypes and shapes of the model's inputs and outputs,
    and compares them with what is expected. It raises ``ConfigError`` for another or no such model,
    and if access is denied; ``DeviceLost`` if the server is not there, ``DeviceTimeout`` if it does
    not answer, ``DeviceError`` if the model is not ready.

    An input, or what ``preprocess`` makes of it, is an array, tensor or nested list for a model
    with one input; for others a mapping by the inputs' names, or a tuple in their order. Numbers
    are converted to the model's datatype if they stay what they are. The output is a numpy array
    of its own, a torch tensor if the input was one, or a mapping of those by name if there are
    several outputs; or what ``postprocess`` makes of it. The steps run in a thread of the driver's.

    ``calibrate`` measures whole calls with ``warmup_input``; without it, it sends zeros, if the
    shapes are fixed.

    The server's refusals are ``InputError``, its own failures ``AsyncInferError`` (the model
    raised), both with its text; what is lost on the way is ``DeviceLost``. Cancelling ``infer``
    cancels the request at the server. ``close`` ends the connections and the thread; calls end with
    ``DeviceLost``.
    """

    #: where the model is, for ``asyncinfer.config``: a run's model is asked for by its name
    model_from: ClassVar[str] = "server"

    @takes(OpenInferenceOptions)
    def __init__(self, options: OpenInferenceOptions) -> None:
        self._options = options
        self._address = Address.parse(options.url, options.protocol, options.tls)
        self.name = options.name or f"{options.model}@{self._address.target}"
        self.max_batch = options.max_batch
        self.concurrency = options.concurrency
        self.shares = options.shares
        #: what the server said of the model when it was last opened
        self.spec: ModelSpec | None = None
        self._model = options.model, options.version
        self._expected = (
            tensor_specs(options.inputs, f"{self.name}: inputs"),
            tensor_specs(options.outputs, f"{self.name}: outputs"),
        )
        #: the limit of the server that was told of
        self._told_most: int | None = None
        self._steps = options.steps.imported()
        self._has_steps = any(self._steps)

    @classmethod
    def leads(
        cls, configured: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
        """What asks the configured servers for health and models: ``asyncinfer devices``."""
        from asyncinfer_drivers.open_inference.discovery import leads

        return leads(cls, configured)

    def _usually_shared(self) -> frozenset[str]:
        return frozenset((host_at(self._address.host),))

    # ---- its life

    def _new_session(self) -> Session:
        return Session(self.name, self._options)

    async def _close(self, session: Session) -> None:
        await session.close()

    async def _open(self, session: Session) -> None:
        transport = await session.connect(self._transport)
        try:
            metadata = await transport.metadata(self._options.connect_timeout)
            ready = await transport.ready(self._options.connect_timeout)
        except (Failure, asyncio.CancelledError) as error:
            raise session.error(error, while_opening)  # noqa: B904  # it has its cause
        except ValueError as error:
            raise ProtocolError(self.name, f"no metadata of a model: {error}") from error
        options = self._options
        config = await transport.config(options.connect_timeout)
        spec = model_spec(
            self.name,
            metadata,
            *self._expected,
            options.batched,
            optional=config.optional,
            overrule=options.overrule,
        )
        if spec.most is not None and options.max_batch > spec.most:
            text = f"the model takes {spec.most} input a request, not max_batch={options.max_batch}"
            raise ConfigError(f"{self.name}: {text}")
        session.told(metadata)
        spec = spec.as_before(self.name, self.spec)
        session.sizes = Sizes(self._bounded(config.most))
        self.max_batch = session.sizes.most
        if not ready:
            raise DeviceError(self.name, f"model {self._model[0]!r} is not ready")
        self.spec = spec
        codec = Codec(self.name, spec, self._steps, transport)
        if self._options.warmup_input is not None:
            await self._warm_up(session, codec)
        session.ready(codec)

    def _bounded(self, most: int | None) -> int:
        """Tasks of one request at most, where the server says how many it takes."""
        wanted = self._options.max_batch
        if most is None or most >= wanted:
            return wanted
        if most != self._told_most:
            self._told_most = most
            logger.warning(
                "%s: the server takes %d tasks in one request, so max_batch=%d is too large",
                self.name, most, wanted,
            )  # fmt: skip
        return most

    def _transport(self) -> Transport:
        """In the thread: importing and reading certificates take time."""
        protocol, most = self._address.protocol, self._options.max_reply_bytes
        given = self._address, self._options, *self._model
        try:
            if protocol == "grpc":
                from asyncinfer_drivers.open_inference.grpc_transport import GrpcTransport

                return GrpcTransport(*given, most=most)
            from asyncinfer_drivers.open_inference.http_transport import HttpTransport
        except ModuleNotFoundError as error:
            text = f"protocol {protocol!r} needs {error.name}: pip install 'asyncinfer[remote]'"
            raise ConfigError(f"{self.name}: {text}") from error
        return HttpTransport(*given, binary=self._options.binary, most=most)

    async def _warm_up(self, session: Session, codec: Codec) -> None:
        """Run the warm-up input.

        Raises ``ConfigError`` if the server or a step does not take it, ``DeviceError`` if the
        model or the device fails: that may pass.
        """
        said = "the warm-up input failed"
        try:
            (output,) = await self._run(session, codec, [self._options.warmup_input])
        except ProtocolError as error:
            output = error
        except DeviceError as error:
            error.message = f"{said}: {error.message}"
            raise
        if type(output) is AsyncInferError:
            raise DeviceError(self.name, f"{said}: {output}") from output
        if isinstance(output, Exception):
            raise ConfigError(f"{self.name}: {said}: {output}") from output

    # ---- its work

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; an output, or the error that is that task's, for each."""
        session = self._opened()
        return await self._run(session, session.codec, batch)

    async def _run(self, session: Session, codec: Codec, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks, in as many requests as the server needs."""
        sizes, outputs = session.sizes, list[Any]()
        while len(batch) > sizes.most:
            part, batch = batch[: sizes.most], batch[sizes.most :]
            outputs += await self._run_part(session, codec, part)
        outputs += await self._run_part(session, codec, batch)
        if self._session is session:
            self.max_batch = sizes.most
        return outputs

    async def _run_part(self, session: Session, codec: Codec, batch: Sequence[Any]) -> list[Any]:
        slow = self._has_steps or _size(batch) > _LOOP_BYTES
        make = codec.requests
        jobs, outputs = await session.thread(make, batch) if slow else make(batch)
        for job in jobs:
            try:
                results = await self._results(session, codec, job, slow)
            except Exception as error:
                tasks = len(job.indexes)
                if isinstance(error, DeviceError):
                    raise
                await session.check_model()
                if 1 < tasks <= session.sizes.taken:
                    raise
                results = [error]
                if tasks > 1:  # so many were never taken: that may be why
                    results = await self._run_halves(session, codec, batch, job, error)
            else:
                session.sizes.took(len(job.indexes))
            for index, result in zip(job.indexes, results, strict=True):
                outputs[index] = result
        return outputs

    async def _run_halves(
        self, session: Session, codec: Codec, batch: Sequence[Any], job: Job, error: Exception
    ) -> list[Any]:
        """Run the tasks of a job in two requests, which were refused in one with ``error``."""
        tasks = [batch[index] for index in job.indexes]
        half, sizes = len(tasks) // 2, session.sizes
        outputs = await self._run_part(session, codec, tasks[:half])
        outputs += await self._run(session, codec, tasks[half:])
        known = len(tasks) > sizes.most
        if known or any(isinstance(output, BaseException) for output in outputs):
            return outputs
        if not await session.refuses(job.request):  # it was another fault, and has passed
            sizes.took(len(tasks))
        elif sizes.too_large(len(tasks)):
            logger.warning(
                "%s: the server refuses %d tasks in one request, and takes %d (%s), so "
                "max_batch=%d is too large",
                self.name, len(tasks), sizes.taken, error, self._options.max_batch,
            )  # fmt: skip
        return outputs

    async def _results(self, session: Session, codec: Codec, job: Job, slow: bool) -> list[Any]:
        reply = await session.reply(job.request)
        if slow or len(reply.body) > _LOOP_BYTES:
            return await session.thread(codec.results, job, reply)
        return codec.results(job, reply)

    # ---- its health

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with ``warmup_input``, else with zeros.

        ``None`` without fixed shapes, and for a model that does not take zeros.
        """
        session = self._opened()
        codec, warmup, most = session.codec, self._options.warmup_input, self.max_batch
        if warmup is not None:
            line = await measured(self.infer, warmup, most)
            return line if self.max_batch == most else await self.calibrate()
        if codec.zeros(1) is None:
            return None

        async def infer(batch: Sequence[Any]) -> None:
            if (job := codec.zeros(len(batch))) is not None:
                await self._results(session, codec, job, False)

        for size in dict.fromkeys((most, 1)):
            try:
                return await measured(infer, None, size)
            except (DeviceLost, DeviceTimeout):
                raise
            except AsyncInferError as error:
                logger.info("%s: it does not take %d inputs of zeros: %s", self.name, size, error)
        return None

    async def probe(self) -> None:
        """Return once the model is ready.

        Raises ``DeviceError`` if it is not for 3 seconds, or nobody answers.
        """
        session, loop = self._opened(), asyncio.get_running_loop()
        give_up_at = loop.time() + _ASK_FOR
        try:
            while not await session.transport.ready(self._options.connect_timeout):
                if loop.time() >= give_up_at:
                    raise DeviceError(self.name, f"model {self._model[0]!r} is not ready")
                await asyncio.sleep(_ASK_AGAIN)
        except (Failure, asyncio.CancelledError) as error:
            raise session.error(error, while_probing)  # noqa: B904


def _size(batch: Sequence[Any]) -> float:
    """Bytes of the inputs; infinite if converting them may take long."""
    size = 0
    for item in batch:
        here = type(item) is np.ndarray or str(getattr(item, "device", "")) == "cpu"
        if not here:
            return float("inf")
        size += item.nbytes
    return size
