"""From inputs of any kind to the numbers of the board's tensors, and back."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from asyncinfer.errors import InputError
from asyncinfer_drivers.cortex_m.axes import InputOrder, output_order
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.specs import TensorSpec

__all__ = ("InputCodec", "OutputCodec", "is_torch")

#: of the range of a datatype: numbers further beyond it than this are counted
_MARGIN = 0.1

_DTYPES = {
    Datatype.BOOL: np.dtype("?"),
    Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
}


class InputCodec:
    """Makes the bytes of one sample; ``InputError`` says what is wrong with an input.

    Real numbers become ``round(x / scale) + zero_point``, halves to even, saturated at the ends
    of the datatype. ``raw``: inputs are those numbers already, and in the board's order.

    An input has the shape that PyTorch's has without the batch dimension. An axis of 1 may be
    left out, or stand elsewhere, if the numbers can only be in one order then. ``channels_first``:
    as in ``BoardOptions``. Raises ``ConfigError`` if it has to be said and is not.
    """

    def __init__(
        self, spec: TensorSpec, *, raw: bool = False, channels_first: bool | None = None
    ) -> None:
        self.spec = spec
        #: inputs with a number that is beyond what the board has by over a tenth of its range
        self.cut_off = 0
        #: one of these numbers
        self.beyond: float | None = None
        self._dtype = _DTYPES[spec.datatype]
        self._quantised = not raw and spec.scale != 0 and self._dtype.kind in "iu"
        self._order = InputOrder(spec, _order(raw, channels_first))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of inputs; several if the board does not say which order is PyTorch's."""
        return self._order.shapes

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest number that the board has."""
        ends: Any = np.iinfo(self._dtype)
        low, high = ((end - self.spec.zero_point) * self.spec.scale for end in (ends.min, ends.max))
        return low, high

    def zeros(self) -> bytes:
        """A sample that stands for zeros, or the nearest number there is."""
        if self._quantised:
            return self._quantise(np.zeros(self.spec.shape)).tobytes()
        return bytes(self.spec.size)

    def encode(self, item: Any) -> bytes:
        """The bytes of one sample."""
        try:
            array = np.asarray(item)
            if array.dtype.kind == "c":
                raise InputError("complex numbers, of which the model would take the real part")
            if array.dtype.kind not in "fiub":
                array = np.asarray(item, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"no array of numbers: {error}") from error
        array = self._order.of(array.shape).to_board(array)
        numbers = self._quantise(array) if self._quantised else self._exact(array)
        return numbers.tobytes()

    def _quantise(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scaled = np.rint(np.asarray(array, np.float64) / self.spec.scale) + self.spec.zero_point
        low, high = scaled.min(), scaled.max()
        if np.isnan(low):
            raise InputError("NaN among the numbers")
        ends: Any = np.iinfo(self._dtype)
        margin = _MARGIN * (ends.max - ends.min)
        if low < ends.min - margin or high > ends.max + margin:
            far = low if low < ends.min - margin else high
            self.cut_off += 1
            self.beyond = float((far - self.spec.zero_point) * self.spec.scale)
        return scaled.clip(ends.min, ends.max).astype(self._dtype)

    def _exact(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The numbers as they are; integers must not change."""
        with np.errstate(all="ignore"):
            numbers = array.astype(self._dtype)
        if self._dtype.kind in "iub" and not np.array_equal(numbers, array):
            raise InputError(f"numbers that are not {self.spec.datatype.name}")
        return numbers


class OutputCodec:
    """Makes arrays of samples' bytes: real numbers in float32, or, if ``raw``, as they came.

    They have PyTorch's order of axes; for ``channels_first`` see ``BoardOptions``. Raises
    ``ConfigError`` if it has to be said and is not.
    """

    def __init__(
        self, spec: TensorSpec, *, raw: bool = False, channels_first: bool | None = None
    ) -> None:
        self.spec = spec
        self._order = output_order(spec, _order(raw, channels_first))
        self._dtype = _DTYPES[spec.datatype]
        self._quantised = not raw and spec.scale != 0 and self._dtype.kind in "iu"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an output."""
        return self._order.shape

    def decode(self, data: bytes, count: int) -> list[np.ndarray[Any, Any]]:
        """``count`` arrays, each of its own."""
        numbers = np.frombuffer(data, self._dtype).reshape(count, *self.spec.shape)
        if not self._quantised:
            return [np.array(row, order="C") for row in self._order.from_board(numbers)]
        real = (numbers.astype(np.float64) - self.spec.zero_point) * self.spec.scale
        return [np.array(row, np.float32, order="C") for row in self._order.from_board(real)]


def is_torch(item: object) -> bool:
    """Whether it is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.Tensor)


def _order(raw: bool, channels_first: bool | None) -> bool | None:
    """What is said of the order of axes: raw numbers are in the board's, unless it is said."""
    return False if raw and channels_first is None else channels_first
