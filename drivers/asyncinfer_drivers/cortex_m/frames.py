"""The frames of the wire protocol, one frozen dataclass per type; see docs/wire-protocol.md.

``frame.to_bytes()`` is a frame's body, checksum included; ``from_bytes`` of its class reads it, and
``parse`` one of any type. ``encode`` gives what goes over the line.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, field, fields
from typing import ClassVar

from asyncinfer_drivers.cortex_m.codec import CodecError, checked, sealed, wrapped
from asyncinfer_drivers.cortex_m.constants import (
    FRAME_VERSION,
    HEADER_BYTES,
    INFER_HEADER_BYTES,
    PING_BYTES,
    RESET_MAGIC,
    RESULT_HEADER_BYTES,
    STATS_FIELDS,
    ErrorCode,
    FrameType,
)
from asyncinfer_drivers.cortex_m.specs import BoardSpec, Reader, readable

__all__ = (
    "DeviceStats",
    "Error",
    "Frame",
    "Hello",
    "HelloReply",
    "Infer",
    "Log",
    "Ping",
    "Pong",
    "Reset",
    "Result",
    "Stats",
    "StatsReply",
    "encode",
    "parse",
)

_HEADER = struct.Struct("<BBH")
_INFER = struct.Struct("<HH")
_RESULT = struct.Struct("<HHI")
_ERROR = struct.Struct("<HI")
_MAGIC = struct.Struct("<I")
_STATS = struct.Struct(f"<{STATS_FIELDS}I")

_CLASSES: dict[int, type[Frame]] = {}


@dataclass(frozen=True)
class Frame:
    """What all frames have."""

    TYPE: ClassVar[FrameType]

    #: chosen by the host, returned in the answer; 0 in what the device sends of its own accord
    sequence: int

    def __init_subclass__(cls) -> None:
        _CLASSES[cls.TYPE] = cls

    def to_bytes(self) -> bytes:
        """The body: version, type, sequence, payload, checksum."""
        return sealed(_HEADER.pack(FRAME_VERSION, self.TYPE, self.sequence) + self._payload())

    @classmethod
    def from_bytes(cls, body: bytes) -> Frame:
        """The frame in this body; raises ``CodecError`` if there is none of this type."""
        frame = parse(body)
        if not isinstance(frame, cls):
            raise CodecError(f"a {frame.TYPE.name}, not {cls.__name__}")
        return frame

    def _payload(self) -> bytes:
        """What is between the header and the checksum; nothing, unless a type says otherwise."""
        return b""

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Frame:
        """The frame with this payload; raises ``CodecError``."""
        if payload:
            raise CodecError(f"{cls.TYPE.name} has no payload, not {len(payload)} bytes")
        return cls(sequence)


@dataclass(frozen=True)
class Hello(Frame):
    """Asks who is there."""

    TYPE = FrameType.HELLO


@dataclass(frozen=True)
class Infer(Frame):
    """``count`` inputs, one after another in ``data``."""

    TYPE = FrameType.INFER

    count: int
    data: bytes

    def _payload(self) -> bytes:
        return _INFER.pack(self.count, 0) + self.data

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Infer:
        _at_least(payload, INFER_HEADER_BYTES, cls.TYPE)
        count, _ = _INFER.unpack_from(payload)
        return cls(sequence, count, payload[INFER_HEADER_BYTES:])


@dataclass(frozen=True)
class Ping(Frame):
    """Asks for the same bytes back."""

    TYPE = FrameType.PING

    data: bytes = b""

    def _payload(self) -> bytes:
        return self.data

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Frame:
        if len(payload) > PING_BYTES:
            raise CodecError(f"{cls.TYPE.name} of {len(payload)} bytes, more than {PING_BYTES}")
        return cls(sequence, payload)


@dataclass(frozen=True)
class Stats(Frame):
    """Asks for the device's counters."""

    TYPE = FrameType.STATS


@dataclass(frozen=True)
class Reset(Frame):
    """Tells the device to boot; the boot's HELLO_REPLY is the answer."""

    TYPE = FrameType.RESET

    magic: int = RESET_MAGIC

    def _payload(self) -> bytes:
        return _MAGIC.pack(self.magic)

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Reset:
        if len(payload) != _MAGIC.size:
            raise CodecError(f"RESET of {len(payload)} bytes, not {_MAGIC.size}")
        return cls(sequence, *_MAGIC.unpack(payload))


@dataclass(frozen=True)
class HelloReply(Frame):
    """Says who is there: answers HELLO, and comes with sequence 0 once after each boot."""

    TYPE = FrameType.HELLO_REPLY

    board: BoardSpec

    def _payload(self) -> bytes:
        return self.board.to_bytes()

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> HelloReply:
        return cls(sequence, BoardSpec.read(Reader(payload)))


@dataclass(frozen=True)
class Result(Frame):
    """``count`` outputs, one after another in ``data``."""

    TYPE = FrameType.RESULT

    count: int
    #: compute time of the whole frame, in 1/tick_hz s
    ticks: int
    data: bytes

    def _payload(self) -> bytes:
        return _RESULT.pack(self.count, 0, self.ticks) + self.data

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Result:
        _at_least(payload, RESULT_HEADER_BYTES, cls.TYPE)
        count, _, ticks = _RESULT.unpack_from(payload)
        return cls(sequence, count, ticks, payload[RESULT_HEADER_BYTES:])


@dataclass(frozen=True)
class Pong(Ping):
    """The bytes of the PING."""

    TYPE = FrameType.PONG


@dataclass(frozen=True)
class DeviceStats:
    """The device's counters, since its memory last lost power, each below 2**32."""

    frames_received: int = 0
    frames_sent: int = 0
    crc_errors: int = 0
    #: too long, bad COBS, too short
    framing_errors: int = 0
    receive_overruns: int = 0
    boots: int = 0
    #: in bytes
    stack_high_water: int = 0
    inferences: int = 0
    errors_sent: int = 0


assert len(fields(DeviceStats)) == STATS_FIELDS  # noqa: S101  # the two are one list


@dataclass(frozen=True)
class StatsReply(Frame):
    """The device's counters."""

    TYPE = FrameType.STATS_REPLY

    stats: DeviceStats = field(default_factory=DeviceStats)

    def _payload(self) -> bytes:
        return _STATS.pack(*astuple(self.stats))

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> StatsReply:
        if len(payload) != _STATS.size:
            raise CodecError(f"STATS_REPLY of {len(payload)} bytes, not {_STATS.size}")
        return cls(sequence, DeviceStats(*_STATS.unpack(payload)))


@dataclass(frozen=True)
class Error(Frame):
    """Why a request was refused. ``code`` may be one this version does not know."""

    TYPE = FrameType.ERROR

    code: int
    detail: int = 0
    text: str = ""

    def _payload(self) -> bytes:
        return _ERROR.pack(self.code, self.detail) + self.text.encode()

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Error:
        _at_least(payload, _ERROR.size, cls.TYPE)
        code, detail = _ERROR.unpack_from(payload)
        return cls(sequence, code, detail, readable(payload[_ERROR.size :]))

    def __str__(self) -> str:
        known = {code.value: code.name for code in ErrorCode}
        head = f"{known.get(self.code, self.code)} ({self.detail})"
        return f"{head}: {self.text}" if self.text else head


@dataclass(frozen=True)
class Log(Frame):
    """A line of text for people; ``level`` as in Python's ``logging``."""

    TYPE = FrameType.LOG

    level: int
    text: str

    def _payload(self) -> bytes:
        return bytes([self.level]) + self.text.encode()

    @classmethod
    def _read(cls, sequence: int, payload: bytes) -> Log:
        _at_least(payload, 1, cls.TYPE)
        return cls(sequence, payload[0], readable(payload[1:]))


def parse(body: bytes) -> Frame:
    """The frame in a body; raises ``CodecError`` for whatever is wrong with it."""
    content = checked(body)
    _, kind, sequence = _HEADER.unpack_from(content)
    if kind not in _CLASSES:
        raise CodecError(f"unknown frame type {kind:#04x}")
    return _CLASSES[kind]._read(sequence, content[HEADER_BYTES:])


def encode(frame: Frame) -> bytes:
    """The frame as it goes over the line, with the zeros before and after it."""
    return wrapped(frame.to_bytes())


def _at_least(payload: bytes, size: int, kind: FrameType) -> None:
    if len(payload) < size:
        raise CodecError(f"{kind.name} of {len(payload)} bytes, less than {size}")
