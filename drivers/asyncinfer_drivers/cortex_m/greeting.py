"""The HELLO that is said until a board answers, and what else came where none does."""

from __future__ import annotations

import asyncio
import string
from collections import Counter

from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import CodecError, Decoder, checked
from asyncinfer_drivers.cortex_m.specs import BoardSpec, readable
from asyncinfer_drivers.cortex_m.transport import BITS_PER_BYTE

__all__ = ("Greeting",)

#: bytes kept of what came
_KEPT = 4096
#: characters shown of a text
_SHOWN = 60
#: bytes that text is made of; a zero is what a terminal makes of the one around a frame
_TEXT = frozenset(string.printable.encode())


class Greeting:
    """One HELLO; repeated, it is the same frame."""

    def __init__(self, sequence: int, byte_seconds: float) -> None:
        self.sequence = sequence
        #: the frame on the line
        self.wire = frames.encode(frames.Hello(sequence))
        self.reply: asyncio.Future[BoardSpec] = asyncio.get_running_loop().create_future()
        #: set when ``reply`` has come, or when HELLO should be said again
        self.again = asyncio.Event()
        self._byte_seconds = byte_seconds
        self._came = bytearray()
        self._count = 0

    def hear(self, data: bytes) -> None:
        """Some bytes came, whatever they are."""
        self._count += len(data)
        self._came += data[: _KEPT - len(self._came)]

    def diagnosis(self) -> str:
        """What came in place of an answer, and what that may mean."""
        came = bytes(self._came)
        if not came:
            return "nothing came: is it powered, is this its port, are TX and RX crossed?"
        if self.wire.strip(b"\0") in came:
            return "HELLO itself came back: an echo, or TX joined to RX"
        kinds, wrong = _frames_in(came)
        if kinds:
            names = ", ".join(f"{count} {name}" for name, count in kinds.items())
            return f"frames came that do not answer it: {names}"
        if wrong is not None:
            return f"frames came that cannot be read: {wrong}"
        # the first and last bytes may be cut, and a zero ends what a terminal echoes
        if sum(byte in _TEXT for byte in came) > 0.9 * len(came):
            lines = came.replace(b"\0", b"").split(b"\n")
            text = readable(next((line.strip() for line in lines if line.strip()), b"")[:_SHOWN])
            return f"text came, {text!r}: another program answers there"
        return f"{self._count:,} bytes came that are no frames: {self._other_speed()}"

    def _other_speed(self) -> str:
        if not self._byte_seconds:
            return "another program, or another speed of the line"
        baudrate = round(BITS_PER_BYTE / self._byte_seconds)
        return f"is the board's speed not {baudrate:,} baud, or the line so bad?"


def _frames_in(data: bytes) -> tuple[Counter[str], str | None]:
    """The frames in what came, by type; else what is wrong with one that has a right checksum."""
    kinds, wrong = Counter[str](), None
    for body in Decoder(_KEPT).feed(data + b"\0"):
        try:
            kinds[frames.parse(body).TYPE.name] += 1
        except CodecError as error:
            wrong = _version_of(body) or wrong or _payload_of(body, error)
    return kinds, wrong


def _version_of(body: bytes) -> str | None:
    """What ``checked`` says of another version, which it looks at behind the checksum."""
    try:
        checked(body)
    except CodecError as error:
        return str(error) if "version" in str(error) else None
    return None


def _payload_of(body: bytes, error: CodecError) -> str | None:
    """``error``, if the checksum is right."""
    try:
        checked(body)
    except CodecError:
        return None
    return str(error)
