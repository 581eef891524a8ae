"""From frames' bodies to bytes on the line and back: COBS, and a decoder with a bounded buffer."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from asyncinfer_drivers.cortex_m.constants import CRC_BYTES, FRAME_VERSION, OVERHEAD_BYTES

__all__ = ("CodecError", "Decoder", "checked", "cobs_decode", "cobs_encode", "sealed", "wrapped")

#: most bytes without a zero that one COBS code byte announces
_RUN: Final = 254
_CRC = struct.Struct("<I")


class CodecError(ValueError):
    """These bytes are not what the protocol says."""


def cobs_encode(data: bytes) -> bytes:
    """``data`` without zero bytes; at most one byte in 254, and one more, is added."""
    out = bytearray()
    runs = data.split(b"\0")
    last = len(runs) - 1
    for index, run in enumerate(runs):
        start, length = 0, len(run)
        while length - start >= _RUN:
            out.append(0xFF)
            out += run[start : start + _RUN]
            start += _RUN
        # a full run at the very end needs no code byte after it
        if start < length or index < last or start == 0:
            out.append(length - start + 1)
            out += run[start:]
    return bytes(out)


def cobs_decode(data: bytes) -> bytes:
    """What was given to ``cobs_encode``; raises ``CodecError`` if ``data`` cannot come from it."""
    if 0 in data:
        raise CodecError("a zero inside a frame")
    out = bytearray()
    at, size = 0, len(data)
    while at < size:
        code = data[at]
        end = at + code
        if end > size:
            raise CodecError("a run that goes beyond the frame")
        out += data[at + 1 : end]
        at = end
        if code != 0xFF and at < size:
            out.append(0)
    return bytes(out)


def sealed(content: bytes) -> bytes:
    """A body: the content and its checksum."""
    return content + _CRC.pack(zlib.crc32(content))


def checked(body: bytes) -> bytes:
    """The content of a body; ``CodecError`` if its length, checksum or version is wrong."""
    if len(body) < OVERHEAD_BYTES:
        raise CodecError(f"a body of {len(body)} bytes")
    content, crc = body[:-CRC_BYTES], body[-CRC_BYTES:]
    if _CRC.pack(zlib.crc32(content)) != crc:
        raise CodecError("wrong checksum")
    if content[0] != FRAME_VERSION:
        raise CodecError(f"frame of version {content[0]}, not {FRAME_VERSION}")
    return content


def wrapped(body: bytes) -> bytes:
    """A body as it goes over the line."""
    return b"\0" + cobs_encode(body) + b"\0"


@dataclass
class Decoder:
    """Takes bytes as they come and returns the bodies in them.

    It never holds more than one frame of ``limit`` body bytes, and never raises: what is too long
    or no COBS is dropped and counted.
    """

    #: largest body, in bytes
    limit: int = 4096
    #: frames that were too long or no COBS
    framing_errors: int = 0

    def __post_init__(self) -> None:
        self._held = bytearray()
        self._too_long = False

    @property
    def held(self) -> int:
        """Bytes of an unfinished frame in the buffer."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that ``data`` completes."""
        bodies = list[bytes]()
        first, *others = data.split(b"\0")
        self._hold(first)
        for part in others:
            self._finish(bodies)
            self._hold(part)
        return bodies

    def _hold(self, part: bytes) -> None:
        longest = self.limit + self.limit // _RUN + 1
        if self._too_long or len(self._held) + len(part) > longest:
            self._held.clear()
            self._too_long = True
        else:
            self._held += part

    def _finish(self, bodies: list[bytes]) -> None:
        coded, too_long = bytes(self._held), self._too_long
        self._held.clear()
        self._too_long = False
        if not coded and not too_long:
            return
        try:
            if too_long:
                raise CodecError("too long")
            bodies.append(cobs_decode(coded))
        except CodecError:
            self.framing_errors += 1
