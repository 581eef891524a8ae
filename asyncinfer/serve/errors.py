"""Every error a request can get for an answer, with its HTTP status and gRPC code."""

from __future__ import annotations

from asyncinfer.errors import (
    AsyncInferError,
    ClosedError,
    DeadlineExceeded,
    DeviceError,
    NoDeviceError,
    PoisonTask,
    QueueTimeout,
    TaskError,
)

__all__ = (
    "ANSWERS",
    "BadRequest",
    "Cancelled",
    "Internal",
    "ModelFailed",
    "NotFound",
    "ServeError",
    "TimedOut",
    "TooLarge",
    "TooMany",
    "Unauthenticated",
    "Unavailable",
    "as_answer",
    "quoted",
)

#: most characters of a client's text that an error repeats
_QUOTED = 80


class ServeError(AsyncInferError):
    """A request that is answered with an error."""


class BadRequest(ServeError):
    """The request is wrong in itself: its form, a shape, a dtype, a value.

    What passes these checks is what the model's metadata asks for, and if it fails then that may be
    the devices' fault.
    """


class Unauthenticated(ServeError):
    """The token is missing or wrong."""


class NotFound(ServeError):
    """No such model or version."""


class TooLarge(ServeError):
    """One request is larger than the server takes; it would never be accepted."""


class TooMany(ServeError):
    """The server is full: the same request may be accepted a moment later."""


class Unavailable(ServeError):
    """The server starts or ends, or no device of the model is up."""


class TimedOut(ServeError):
    """The request was not finished within its time."""


class Cancelled(ServeError):
    """The client has gone: nobody reads the answer."""


class ModelFailed(ServeError):
    """The model raised at every attempt: by fault of the request, or of the server's devices.

    A client that has another server may try there.
    """


class Internal(ServeError):
    """A fault of the server; its log has the traceback."""


#: the one table: HTTP status, name of the gRPC code
ANSWERS: dict[type[ServeError], tuple[int, str]] = {
    BadRequest: (400, "INVALID_ARGUMENT"),
    Unauthenticated: (401, "UNAUTHENTICATED"),
    NotFound: (404, "NOT_FOUND"),
    TooLarge: (413, "RESOURCE_EXHAUSTED"),
    TooMany: (429, "RESOURCE_EXHAUSTED"),
    Unavailable: (503, "UNAVAILABLE"),
    Cancelled: (499, "CANCELLED"),
    TimedOut: (504, "DEADLINE_EXCEEDED"),
    ModelFailed: (500, "INTERNAL"),
    Internal: (500, "INTERNAL"),
}


def as_answer(error: Exception) -> ServeError:
    """What to answer where ``error`` was raised."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, TimeoutError):
        return TimedOut("not finished within the request's timeout")
    if isinstance(error, NoDeviceError | ClosedError):
        return Unavailable(str(error))
    if isinstance(error, DeadlineExceeded):
        return TimedOut(str(error))
    if isinstance(error, QueueTimeout):  # others are before it: it may go elsewhere
        return TooMany(str(error))
    if isinstance(error, PoisonTask):  # its devices are lost by it, and not for others
        return ModelFailed(str(error))
    if isinstance(error, TaskError):
        last = error.causes[-1] if error.causes else None
        answer = Unavailable if isinstance(last, DeviceError) else ModelFailed
        return answer(str(error))
    return Internal("the server failed; its log says why")


def quoted(text: object) -> str:
    """A client's text as an error repeats it: on one line, cut, printable."""
    shown = ascii(text)
    return shown if len(shown) <= _QUOTED else f"{shown[:_QUOTED]}..."
