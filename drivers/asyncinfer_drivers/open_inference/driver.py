"""``OpenInferenceDriver``: a model of a server that speaks the Open Inference Protocol v2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.errors import (
    ConfigError,
    DeviceError,
    DeviceLost,
    InputError,
    ProtocolError,
)
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._shared.timing import measured
from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.codec import Codec, Job
from asyncinfer_drivers.open_inference.faults import Failure, while_opening, while_probing
from asyncinfer_drivers.open_inference.session import Limits, Session
from asyncinfer_drivers.open_inference.specs import ModelSpec, model_spec, tensor_specs
from asyncinfer_drivers.open_inference.transport import Transport

__all__ = ("OpenInferenceDriver",)

#: bytes that are converted on the event loop: copying that many takes less than a millisecond
_SMALL = 1 << 20


class OpenInferenceDriver(Driver[Any, Any]):
    """Runs one model of a server over the Open Inference Protocol v2 (KServe v2).

    ``url`` is ``host:port``, or begins with ``grpc://``, ``grpcs://`` (TLS), ``http://`` or
    ``https://``. ``protocol`` is ``"grpc"`` (the default) or ``"http"`` where the URL does not say.
    ``model`` and ``version`` are the server's names; no version: the server's choice.

    ``open`` asks the server for the names, datatypes and shapes of the model's inputs and outputs.
    ``inputs`` and ``outputs``, lists of ``{"name": ..., "datatype": ..., "shape": ...}`` (the last
    two may be missing, -1 is any size), say what is expected: a server that says otherwise is a
    ``ConfigError``. Of a server that says nothing, they are believed. Only the ``outputs`` that are
    named are asked for.

    An input, or what ``preprocess`` makes of it, is an array, tensor or nested list for a model
    with one input; for others a mapping by the inputs' names, or a tuple in their order. Numbers
    are converted to the model's datatype if they stay what they are. The output is a numpy array
    of its own, a torch tensor if the input was one, or a mapping of those by name if there are
    several outputs; or what ``postprocess`` makes of it. ``collate`` and ``uncollate`` do the same
    for a whole batch, as for ``TorchDriver``. These steps run in a thread of the driver's.

    ``batched`` tells whether the first dimension of every tensor is the batch. By default it is if
    the server says that it has any size. Then inputs come without it, and up to ``max_batch`` of
    them go in one request; else inputs have the model's whole shape, and ``max_batch`` is 1.

    ``concurrency`` requests are under way at once: with 2, one travels while another is computed.

    Time limits, in seconds: ``connect_timeout`` for every answer that ``open`` and ``probe`` wait
    for, ``queue_timeout`` for a server that says it is overloaded, which is asked again and again,
    and ``run_timeout`` for one request. Past them: ``DeviceTimeout``, for an overloaded server
    ``DeviceError``.

    ``ca`` is a file of the certificates to trust, ``cert`` and ``key`` are files of this client's
    own; with them, ``host:port`` means TLS. ``headers`` go with every request (gRPC: metadata),
    and so does a bearer token from the environment variable ``token_env`` or the ``token_file``,
    read again at each ``open``.

    ``warmup_input`` is one raw input. With it, ``open`` runs the model once, failing with
    ``ConfigError`` if that fails, and ``calibrate`` measures whole calls; without it ``calibrate``
    sends zeros, if the shapes are fixed. ``binary=False`` sends and asks for JSON only, over HTTP.
    An answer of more than ``max_reply_bytes`` is a ``DeviceError``, and is not read to its end.

    The server's refusals are ``InputError``, its own failures ``AsyncInferError`` (the model
    raised), both with its text; what is lost on the way is ``DeviceLost``. Cancelling ``infer``
    cancels the request at the server.
    """

    #: where the model is, for ``asyncinfer.config``: a run's model is asked for by its name
    model_from: ClassVar[str] = "server"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        name: str | None = None,
        protocol: str | None = None,
        version: str = "",
        max_batch: int = 1,
        concurrency: int = 2,
        batched: bool | None = None,
        inputs: Sequence[Mapping[str, Any]] = (),
        outputs: Sequence[Mapping[str, Any]] = (),
        preprocess: Callable[[Any], Any] | str | None = None,
        postprocess: Callable[[Any], Any] | str | None = None,
        collate: Callable[[Sequence[Any]], Any] | str | None = None,
        uncollate: Callable[[Any], Sequence[Any]] | str | None = None,
        warmup_input: Any = None,
        connect_timeout: float = 5.0,
        queue_timeout: float = 2.0,
        run_timeout: float | None = 60.0,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        token_env: str | None = None,
        token_file: str | None = None,
        headers: Mapping[str, str] | None = None,
        binary: bool = True,
        max_reply_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        whole = {"max_batch": max_batch, "concurrency": concurrency}
        for option, value in (whole | {"max_reply_bytes": max_reply_bytes}).items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{option} must be a whole number of at least 1, not {value!r}")
        if not model or not isinstance(model, str):
            raise ConfigError(f"model is the name of what the server runs, not {model!r}")
        self._access = Access(ca, cert, key, token_env, token_file, headers or {})
        self._address = Address.parse(url, protocol, self._access.tls)
        self.name = name or f"{model}@{self._address.target}"
        self.max_batch = max_batch
        self.concurrency = concurrency
        #: what the server said of the model when it was last opened
        self.spec: ModelSpec | None = None
        self._model = model, version
        self._binary = binary
        self._most = max_reply_bytes
        self._expected = (
            tensor_specs(inputs, f"{self.name}: inputs"),
            tensor_specs(outputs, f"{self.name}: outputs"),
        )
        self._batched = batched
        self._steps = Steps.given(preprocess, postprocess, collate, uncollate).imported()
        self._has_steps = any(self._steps)
        self._warmup = warmup_input
        self._limits = Limits(connect_timeout, queue_timeout, run_timeout)
        self._session: Session | None = None

    @classmethod
    def leads(
        cls, configured: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
        """What asks the configured servers for health and models: ``asyncinfer devices``."""
        from asyncinfer_drivers.open_inference.discovery import leads

        return leads(cls, configured)

    # ---- its life

    async def open(self) -> None:
        """Connect, compare the server's model with what is expected, run it if there is an input.

        Raises ``ConfigError`` for another or no such model, and if access is denied; ``DeviceLost``
        if the server is not there, ``DeviceTimeout`` if it does not answer, ``DeviceError`` if the
        model is not ready.
        """
        if self._session is not None and self._session.codec is not None:
            return
        await self._disconnect()
        session = self._session = Session(self.name, self._limits)
        try:
            await self._open(session)
        except BaseException:
            await session.close()
            if self._session is session:
                self._session = None
            raise
        if self._session is not session:
            raise DeviceLost(self.name, "closed while it was opening")

    async def _open(self, session: Session) -> None:
        transport = await session.connect(self._transport)
        try:
            metadata = await transport.metadata(self._limits.connect)
            ready = await transport.ready(self._limits.connect)
        except (Failure, asyncio.CancelledError) as error:
            raise session.error(error, while_opening)  # noqa: B904  # it has its cause
        except ValueError as error:
            raise ProtocolError(self.name, f"no metadata of a model: {error}") from error
        spec = model_spec(self.name, metadata, *self._expected, self._batched)
        if spec.most is not None and self.max_batch > spec.most:
            text = f"the model takes {spec.most} input a request, not max_batch={self.max_batch}"
            raise ConfigError(f"{self.name}: {text}")
        if not ready:
            raise DeviceError(self.name, f"model {self._model[0]!r} is not ready")
        self.spec = spec
        codec = Codec(self.name, spec, self._steps, transport)
        if self._warmup is not None:
            await self._warm_up(session, codec)
        session.codec = codec

    def _transport(self) -> Transport:
        """In the thread: importing and reading certificates take time."""
        protocol = self._address.protocol
        given = self._address, self._access, *self._model
        try:
            if protocol == "grpc":
                from asyncinfer_drivers.open_inference.grpc_transport import GrpcTransport

                return GrpcTransport(*given, most=self._most)
            from asyncinfer_drivers.open_inference.http_transport import HttpTransport
        except ModuleNotFoundError as error:
            text = f"protocol {protocol!r} needs {error.name}: pip install 'asyncinfer[remote]'"
            raise ConfigError(f"{self.name}: {text}") from error
        return HttpTransport(*given, binary=self._binary, most=self._most)

    async def _warm_up(self, session: Session, codec: Codec) -> None:
        """Run the warm-up input; ``ConfigError`` if the server or a step does not take it."""
        try:
            (output,) = await self._run(session, codec, [self._warmup])
        except (InputError, ProtocolError) as error:
            output = error
        if isinstance(output, Exception):
            raise ConfigError(f"{self.name}: the warm-up input failed: {output}") from output

    async def close(self) -> None:
        """Close the connections and end the thread; calls end with ``DeviceLost``. Idempotent."""
        await self._disconnect()

    async def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # ---- its work

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; an output, or the error that is that task's, for each."""
        session, codec = self._opened()
        return await self._run(session, codec, batch)

    async def _run(self, session: Session, codec: Codec, batch: Sequence[Any]) -> list[Any]:
        slow = self._has_steps or _size(batch) > _SMALL
        make = codec.requests
        jobs, outputs = await session.thread(make, batch) if slow else make(batch)
        for job in jobs:
            try:
                results = await self._results(session, codec, job, slow)
            except Exception as error:
                if isinstance(error, DeviceError) or len(job.indexes) > 1:
                    raise
                results = [error]
            for index, result in zip(job.indexes, results, strict=True):
                outputs[index] = result
        return outputs

    async def _results(self, session: Session, codec: Codec, job: Job, slow: bool) -> list[Any]:
        reply = await session.reply(job.request)
        if slow or len(reply.body) > _SMALL:
            return await session.thread(codec.results, job, reply)
        return codec.results(job, reply)

    # ---- its health

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with ``warmup_input``, else with zeros; ``None`` without fixed shapes."""
        session, codec = self._opened()
        if self._warmup is not None:
            return await measured(self.infer, self._warmup, self.max_batch)
        if codec.zeros(1) is None:
            return None

        async def infer(batch: Sequence[Any]) -> None:
            if (job := codec.zeros(len(batch))) is not None:
                await self._results(session, codec, job, False)

        return await measured(infer, None, self.max_batch)

    async def probe(self) -> None:
        """Return if the model is ready; raise ``DeviceError`` if it is not, or nobody answers."""
        session, _ = self._opened()
        try:
            ready = await session.transport.ready(self._limits.connect)
        except (Failure, asyncio.CancelledError) as error:
            raise session.error(error, while_probing)  # noqa: B904
        if not ready:
            raise DeviceError(self.name, f"model {self._model[0]!r} is not ready")

    def _opened(self) -> tuple[Session, Codec]:
        session = self._session
        if session is None or session.codec is None:
            raise DeviceLost(self.name, "not open")
        return session, session.codec


def _size(batch: Sequence[Any]) -> float:
    """Bytes of the inputs; infinite if converting them may take long."""
    size = 0
    for item in batch:
        here = type(item) is np.ndarray or str(getattr(item, "device", "")) == "cpu"
        if not here:
            return float("inf")
        size += item.nbytes
    return size
