"""Which axis is which: in arrays as PyTorch has them, and in the memory of a board."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asyncinfer.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncinfer_drivers.cortex_m.specs import TensorSpec

__all__ = ("InputOrder", "Order", "output_order")


@dataclass(frozen=True)
class Order:
    """An order of axes that arrays may come in, or go out in."""

    #: of such an array
    shape: tuple[int, ...]
    #: for each axis of the board's memory, which one of the array's it is
    axes: tuple[int, ...]

    @classmethod
    def own(cls, spec: TensorSpec) -> Order:
        """The board's."""
        return cls(spec.shape, tuple(range(len(spec.shape))))

    @classmethod
    def torch(cls, spec: TensorSpec) -> Order:
        """PyTorch's. If nobody says which that is: as if the board's channels were last."""
        rank = len(spec.shape)
        if spec.axes is not None:
            return cls(spec.torch_shape, spec.axes or tuple(range(rank)))
        last = spec.shape[-1:]
        return cls((*last, *spec.shape[:-1]), (*range(1, rank), 0)[:rank])

    @property
    def long(self) -> tuple[int, ...]:
        """The order of the axes that are longer than 1, which alone moves any number."""
        axes = [axis for axis in self.axes if self.shape[axis] != 1]
        return tuple(map(sorted(axes).index, axes))

    def to_board(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array that has ``shape``, but for axes of 1, as it lies in the board's memory."""
        return array.reshape(self.shape).transpose(self.axes)

    def from_board(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Samples ``[n, ...]`` that lie as in the board's memory, each in this order."""
        return samples.transpose(self._back)

    @cached_property
    def _back(self) -> tuple[int, ...]:
        """Which axes of such samples make those of this order."""
        places = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return 0, *(place + 1 for place in places)


class InputOrder:
    """Tells which order an input is in, by its shape; never by a guess.

    :param taken: whether inputs are PyTorch's (``True``) or the board's (``False``). ``None``:
        PyTorch's, or what the shape tells if the board does not say which that is.
    :raises ConfigError: if the shape of inputs in either order is the same, and the board does not
        say which.
    """

    def __init__(self, spec: TensorSpec, taken: bool | None) -> None:
        torch, own = Order.torch(spec), Order.own(spec)
        self._all = (own, torch)
        self._taken: tuple[Order, ...] = self._all
        if taken is not None or spec.axes is not None:
            self._taken = (own,) if taken is False else (torch,)
        elif torch.shape == own.shape and torch.long != own.long:
            raise ConfigError(_unsaid("input", spec))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the inputs that are taken, each once."""
        return list(dict.fromkeys(order.shape for order in self._taken))

    def of(self, shape: tuple[int, ...]) -> Order:
        """The order of an input of this shape; ``InputError`` if that is none or not clear."""
        for order in self._taken:
            if order.shape == shape:
                return order
        # axes of 1 at the ends do not count, where that leaves no doubt about the others
        possible = {order.long for order in self._all if _long(order.shape) == _long(shape)}
        for order in self._taken:
            fits = len(shape) <= len(order.shape) and _stripped(shape) == _stripped(order.shape)
            if fits and possible == {order.long}:
                return order
        raise InputError(self._complaint(shape, len(possible) > 1))

    def _complaint(self, shape: tuple[int, ...], unclear: bool) -> str:
        expected = " or ".join(str(list(taken)) for taken in self.shapes)
        text = f"shape {list(shape)}, the model takes {expected}"
        if shape[:1] == (1,) and shape[1:] in self.shapes:
            return f"{text}: leave out the batch dimension"
        own, torch = self._all
        if shape in (own.shape, torch.shape):
            first = shape == torch.shape
            return f"{text}: inputs of the other order need channels_first={first}"
        return f"{text}: without axes of 1 it could be either order" if unclear else text


def output_order(spec: TensorSpec, given: bool | None) -> Order:
    """The order of outputs: PyTorch's (``True``, ``None``) or the board's (``False``).

    Raises ``ConfigError`` if the board does not say what is PyTorch's, and neither does ``given``.
    """
    torch, own = Order.torch(spec), Order.own(spec)
    if given is None and spec.axes is None and (torch.shape, torch.long) != (own.shape, own.long):
        raise ConfigError(_unsaid("output", spec))
    return own if given is False else torch


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without ones."""
    return tuple(size for size in shape if size != 1)


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the ones at its ends."""
    large = [at for at, size in enumerate(shape) if size != 1]
    return shape[large[0] : large[-1] + 1] if large else ()


def _unsaid(what: str, spec: TensorSpec) -> str:
    return (
        f"a firmware of protocol 1 does not say whether the channels of its {what} "
        f"{list(spec.shape)} come first; build it anew, or say channels_first=True if they do "
        "in PyTorch and are last on the board, or False for the board's own order"
    )
