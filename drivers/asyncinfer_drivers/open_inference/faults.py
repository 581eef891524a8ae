"""How a server, or the way to it, can fail, whichever protocol is spoken."""

from __future__ import annotations

from enum import Enum

from asyncinfer.errors import (
    AsyncInferError,
    ConfigError,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    InputError,
)

__all__ = ("Failure", "Kind", "one_line", "while_opening", "while_probing", "while_running")

#: characters of a server's text that are shown
_LONGEST = 300


class Kind(Enum):
    """What a failed request means."""

    #: the request is wrong in itself
    INPUT = "refused the input"
    #: it has too much to do
    BUSY = "is overloaded"
    #: it is not there, or no longer
    LOST = "cannot be reached"
    #: it says itself that it cannot answer now: what for, tells whether it is ready
    UNAVAILABLE = "is unavailable"
    #: it did not answer in time
    TIMEOUT = "did not answer in time"
    #: it does not know who asks
    DENIED = "denied access"
    #: it does not have the model
    UNKNOWN = "does not have that"
    #: it answers with more than is wanted
    TOO_LARGE = "answers too much"
    #: it failed at this request
    FAILED = "failed"
    #: the answer is none of a model's server, but of what stands before it
    STRANGE = "does not answer itself"


class Failure(Exception):
    """A request that was not answered, and why."""

    def __init__(self, kind: Kind, text: str, wait: float = 0.0) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = one_line(text)
        #: seconds for which it asks to be left alone
        self.wait = wait

    def __str__(self) -> str:
        return f"the server {self.kind.value}" + (f": {self.text}" if self.text else "")


def one_line(text: str) -> str:
    """A server's text for an error message; of a traceback its last line."""
    if text.lstrip().startswith("Traceback"):
        text = text.rstrip().rpartition("\n")[2]
    line = " ".join(text[: 8 * _LONGEST].split())
    line = "".join(one if one.isprintable() else "?" for one in line)  # no terminal's commands
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def while_opening(name: str, failure: Failure) -> AsyncInferError:
    """The error to raise when a request of ``open`` failed."""
    match failure.kind:
        case Kind.DENIED:
            return ConfigError(f"{name}: {failure}; check token_env, token_file, headers and cert")
        case Kind.UNKNOWN | Kind.INPUT:
            return ConfigError(f"{name}: {failure}; check url and model")
        case _:
            return while_probing(name, failure)


def while_running(name: str, failure: Failure) -> AsyncInferError:
    """The error to raise when a request of ``infer`` failed."""
    match failure.kind:
        case Kind.INPUT:
            return InputError(f"device {name!r}: {failure}")
        case Kind.FAILED:  # the model raised: the task's own fault
            return AsyncInferError(f"device {name!r}: {failure}")
        case _:
            return while_probing(name, failure)


def while_probing(name: str, failure: Failure) -> DeviceError:
    """The error to raise where only the device can be to blame."""
    kinds = {
        Kind.LOST: DeviceLost,
        Kind.UNAVAILABLE: DeviceLost,
        Kind.TIMEOUT: DeviceTimeout,
    }
    return kinds.get(failure.kind, DeviceError)(name, str(failure))
