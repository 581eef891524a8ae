"""What the driver needs of a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from asyncinfer_drivers.open_inference.tensors import Given, Message, Received

__all__ = ("ABOUT_BYTES", "ModelConfig", "Transport")

#: most bytes of an answer that is no inference: what a server says of itself or a model, an error
ABOUT_BYTES = 4 * 1024 * 1024


class ModelConfig(NamedTuple):
    """What Triton tells of a model besides its metadata."""

    #: tasks in one request at most; ``None``: not known
    most: int | None = None
    #: names of the inputs that may be left out
    optional: frozenset[str] = frozenset()


class Transport(Protocol):
    """The way to one model of one server.

    Requests raise ``Failure``. A request that is cancelled, or takes longer than its ``timeout``
    in seconds, is cancelled at the server too.
    """

    def connect(self) -> None:
        """Prepare to connect: the first request does it."""
        ...

    async def close(self) -> None:
        """Close the connections; requests under way end. Idempotent."""
        ...

    async def metadata(self, timeout: float | None) -> Mapping[str, Any]:
        """``inputs`` and ``outputs`` of the model; ``ValueError`` if the reply is none."""
        ...

    async def config(self, timeout: float | None) -> ModelConfig:
        """What else the server tells of the model; most servers tell nothing."""
        ...

    async def ready(self, timeout: float | None) -> bool:
        """Whether the model can be run now."""
        ...

    async def about(self, timeout: float | None) -> Mapping[str, Any]:
        """Of the whole server: ``ready``, ``name``, ``version``, and ``models``, if it tells."""
        ...

    async def infer(self, request: Message, timeout: float | None) -> Message:
        """The reply to a request."""
        ...

    def encode(self, tensors: Sequence[Given], outputs: Sequence[str]) -> Message:
        """The request to run ``tensors`` and return those outputs; none: all. Any thread."""
        ...

    def decode(self, reply: Message) -> list[Received]:
        """The tensors in a reply; ``ValueError`` if it is none. Any thread."""
        ...
