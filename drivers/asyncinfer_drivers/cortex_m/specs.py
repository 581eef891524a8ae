"""What a board says about itself and its model in HELLO_REPLY."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from asyncinfer_drivers.cortex_m.codec import CodecError
from asyncinfer_drivers.cortex_m.constants import (
    INFER_HEADER_BYTES,
    OVERHEAD_BYTES,
    PROTOCOL_VERSION,
    Datatype,
)

__all__ = ("BoardSpec", "Reader", "TensorSpec", "readable")

_HEAD = struct.Struct("<BBHIII")
_SCALE = struct.Struct("<fi")

_ITEM_BYTES = {
    Datatype.BOOL: 1,
    Datatype.UINT8: 1,
    Datatype.UINT16: 2,
    Datatype.UINT32: 4,
    Datatype.UINT64: 8,
    Datatype.INT8: 1,
    Datatype.INT16: 2,
    Datatype.INT32: 4,
    Datatype.INT64: 8,
    Datatype.FP16: 2,
    Datatype.FP32: 4,
    Datatype.FP64: 8,
}


def readable(data: bytes) -> str:
    """A board's text; what is no text, or would command a terminal, is replaced."""
    text = data.decode(errors="replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


class Reader:
    """Takes a payload apart from the front; raises ``CodecError`` where it is too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        self._at += size
        if self._at > len(self._data):
            raise CodecError("a payload that ends too early")
        return self._data[self._at - size : self._at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def text(self) -> str:
        """The next ``str``: its length, then UTF-8."""
        return readable(self.take(self.byte()))

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise CodecError(f"{len(self._data) - self._at} bytes too many")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the model. Real value = ``scale * (number - zero_point)``."""

    name: str
    datatype: Datatype
    #: without the batch dimension, as the numbers lie in the board's memory
    shape: tuple[int, ...]
    #: 0 if the numbers are not quantised, and are the values themselves
    scale: float = 0.0
    zero_point: int = 0
    #: for each axis of ``shape``, which one of PyTorch's tensor it is: an image ``[height, width,
    #: channels]`` has ``(1, 2, 0)``. Empty if ``shape`` is PyTorch's; ``None`` if nobody says,
    #: as boards of protocol 1
    axes: tuple[int, ...] | None = ()

    @property
    def size(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * _ITEM_BYTES[self.datatype]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """As PyTorch has it, without the batch dimension; ``shape`` if nobody says."""
        sizes = dict(zip(self.axes or range(len(self.shape)), self.shape, strict=True))
        return tuple(sizes[axis] for axis in sorted(sizes))

    def to_bytes(self, protocol: int = PROTOCOL_VERSION) -> bytes:
        """As in HELLO_REPLY."""
        rank = len(self.shape)
        shape = bytes([self.datatype, rank]) + struct.pack(f"<{rank}I", *self.shape)
        if protocol > 1:
            shape += bytes(self.axes or range(rank))
        return _text(self.name) + shape + _SCALE.pack(self.scale, self.zero_point)

    @classmethod
    def read(cls, reader: Reader, protocol: int = PROTOCOL_VERSION) -> TensorSpec:
        """The next one; raises ``CodecError``."""
        name, number, rank = reader.text(), reader.byte(), reader.byte()
        shape = struct.unpack(f"<{rank}I", reader.take(4 * rank))
        axes = _axes(reader.take(rank)) if protocol > 1 else None
        scale, zero_point = _SCALE.unpack(reader.take(_SCALE.size))
        try:
            return cls(name, Datatype(number), shape, scale, zero_point, axes)
        except ValueError as error:
            raise CodecError(str(error)) from error


@dataclass(frozen=True)
class BoardSpec:
    """A board, its limits and its model."""

    board: str
    firmware: str
    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: requests that may be unanswered at once
    frames_in_flight: int = 1
    #: largest count in one INFER
    max_samples: int = 1
    #: lives in memory that survives a reset
    boot_counter: int = 0
    #: largest body it takes, in bytes
    receive_buffer: int = 1024
    #: ticks of RESULT in one second
    tick_hz: int = 1
    protocol: int = PROTOCOL_VERSION

    @property
    def samples_per_frame(self) -> int:
        """Samples that fit into one INFER; 0 if not even one does."""
        room = self.receive_buffer - OVERHEAD_BYTES - INFER_HEADER_BYTES
        return max(0, min(self.max_samples, room // max(1, self.inputs[0].size)))

    @property
    def output_size(self) -> int:
        """Bytes of all outputs of one sample."""
        return sum(output.size for output in self.outputs)

    def same_program(self, other: BoardSpec) -> bool:
        """Whether both run the same firmware with the same model."""
        mine = (self.board, self.firmware, self.model, self.inputs, self.outputs)
        return mine == (other.board, other.firmware, other.model, other.inputs, other.outputs)

    def same_boot(self, other: BoardSpec) -> bool:
        """Whether both were said since one boot, as far as can be told."""
        return self.boot_counter == other.boot_counter and self.same_program(other)

    def to_bytes(self) -> bytes:
        """The payload of HELLO_REPLY."""
        numbers = (self.max_samples, self.boot_counter, self.receive_buffer, self.tick_hz)
        parts = [_HEAD.pack(self.protocol, self.frames_in_flight, *numbers)]
        parts += [_text(text) for text in (self.board, self.firmware, self.model)]
        for tensors in (self.inputs, self.outputs):
            coded = [tensor.to_bytes(self.protocol) for tensor in tensors]
            parts += [bytes([len(tensors)]), *coded]
        return b"".join(parts)

    @classmethod
    def read(cls, reader: Reader) -> BoardSpec:
        """A whole payload; raises ``CodecError``. Of a later protocol only its number is known."""
        head = _HEAD.unpack(reader.take(_HEAD.size))
        protocol, frames, samples, boots, buffer, hz = head
        limits = (frames, samples, boots, buffer, hz, protocol)
        if protocol > PROTOCOL_VERSION:
            return cls("", "", "", (), (), *limits)
        board, firmware, model = reader.text(), reader.text(), reader.text()
        inputs, outputs = (
            tuple(TensorSpec.read(reader, protocol) for _ in range(reader.byte())) for _ in range(2)
        )
        reader.end()
        return cls(board, firmware, model, inputs, outputs, *limits)


def _axes(data: bytes) -> tuple[int, ...]:
    """The order of axes in these bytes; none if it is PyTorch's."""
    whole = list(range(len(data)))
    if sorted(data) != whole:
        raise CodecError(f"axes {list(data)}, not each of {whole} once")
    return () if list(data) == whole else tuple(data)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 0xFF:
        raise ValueError(f"{text!r} is longer than 255 bytes")
    return bytes([len(data)]) + data
