"""The options of ``OpenInferenceDriver``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.options import StepOptions
from asyncinfer_drivers._shared.sharing import SharingOptions
from asyncinfer_drivers.open_inference.access import Access
from asyncinfer_drivers.open_inference.session import Limits

__all__ = ("OpenInferenceOptions",)


@dataclass(frozen=True, kw_only=True)
class OpenInferenceOptions(Access, Limits, StepOptions, SharingOptions):
    """What ``OpenInferenceDriver`` takes."""

    #: ``host:port``, or what begins with ``grpc://``, ``grpcs://`` (TLS), ``http://`` or
    #: ``https://``
    url: str = field(kw_only=False)
    #: the server's name for what is to be run
    model: str = field(kw_only=False)
    #: the device's name; by default ``model@host:port``
    name: str | None = None
    #: ``"grpc"`` (the default) or ``"http"`` where the URL does not say
    protocol: str | None = None
    #: the server's name for one version of the model; empty: the server's choice
    version: str = ""
    #: tasks that go in one request at most
    max_batch: int = 1
    #: requests under way at once: with 2, one travels while another is computed
    concurrency: int = 2
    #: whether the first dimension of every tensor is the batch. By default it is if the server says
    #: that it has any size. Then inputs come without it, and up to ``max_batch`` of them go in one
    #: request; else inputs have the model's whole shape, and ``max_batch`` is 1
    batched: bool | None = None
    #: the inputs that are expected, each ``{"name": ..., "datatype": ..., "shape": ...}`` (the last
    #: two may be missing, -1 is any size). A server that says otherwise is a ``ConfigError``; of
    #: one that says nothing, they are believed. A task may leave out an input with
    #: ``"optional": True``; Triton says itself which those are
    inputs: Sequence[Mapping[str, Any]] = ()
    #: the outputs that are expected, in the same way; only those named are asked for
    outputs: Sequence[Mapping[str, Any]] = ()
    #: whether ``inputs`` and ``outputs`` hold where the server says otherwise
    overrule: bool = False
    #: ``False`` sends and asks for JSON only, over HTTP
    binary: bool = True
    #: an answer of more bytes is a ``DeviceError``, and is not read to its end
    max_reply_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        StepOptions.__post_init__(self)
        Access.__post_init__(self)
        if not self.model:
            raise ConfigError(f"model is the name of what the server runs, not {self.model!r}")
