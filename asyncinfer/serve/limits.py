"""What the server takes at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from asyncinfer.errors import ConfigError
from asyncinfer.registry import did_you_mean

__all__ = ("Limits",)

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Most that the server takes; past it requests are refused, not queued.

    ``ConfigError`` for what is no number above 0.
    """

    #: requests in work at once, over both transports
    max_requests: int = 256
    #: rows accepted and not answered, over all models
    max_rows: int = 4096
    #: rows of one request
    max_batch: int = 1024
    #: bytes of one request's body or message
    max_request_bytes: int = 16 * MIB
    #: bytes of all requests that are in work
    max_total_bytes: int = 256 * MIB
    #: bytes of the JSON in a body: Python objects take far more memory than their text
    max_json_bytes: int = 8 * MIB
    #: bytes of a request's line and headers
    max_header_bytes: int = 32 * 1024
    #: open HTTP connections
    max_connections: int = 1024
    #: open gRPC streams
    max_streams: int = 16
    #: requests of one gRPC stream in work at once; the rest is not read yet
    max_stream_requests: int = 64
    #: seconds a client may take to send one HTTP request
    receive_timeout: float = 60.0
    #: seconds a request may take from its acceptance to its answer
    request_timeout: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = int if isinstance(field.default, int) else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
                expected = "a whole number" if kind is int else "seconds"
                raise ConfigError(
                    f"[serve]: {field.name!r} must be {expected} above 0, not {value!r}"
                )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Limits:
        """Those of a config's ``[serve]`` table; ``ConfigError`` for an unknown key."""
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                raise ConfigError(f"[serve]: unknown key {key!r}; {did_you_mean(key, known)}")
        return cls(**table)
