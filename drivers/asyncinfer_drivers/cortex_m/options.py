"""The options of the drivers for boards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncinfer_drivers._shared.sharing import SharingOptions
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import Connect, SerialOptions

__all__ = ("BoardOptions", "CortexM4Options")


@dataclass(frozen=True, kw_only=True)
class BoardOptions(SharingOptions):
    """What a board is called, and how tasks become what it computes with."""

    #: the device's name
    name: str = "cortex_m4"
    #: tasks a call of ``infer`` takes at most, by default 16: the dispatcher's limit. The board has
    #: its own: a batch is cut into frames that fit it
    max_batch: int | None = None
    #: ``infer`` calls accepted at once, by default 2; frames wait for the board's credit
    concurrency: int | None = None
    #: from one input to an array, tensor or nested list of real numbers; runs in a thread
    preprocess: Callable[[Any], Any] | None = None
    #: from one output to the result; runs in a thread
    postprocess: Callable[[Any], Any] | None = None
    #: whether inputs and outputs are the board's own numbers, int8 as a rule, in its own order of
    #: axes unless ``channels_first`` says otherwise
    raw: bool = False
    #: the order of axes. By default that of PyTorch's module: ``[channels, height, width]``,
    #: ``[channels, length]``. ``False``: the board's own, channels last as a rule. A firmware of
    #: protocol 1 does not say which is which. With that the shape of an input tells; where it
    #: cannot, and for outputs of several axes, this has to be said: ``True`` if channels are first
    #: in PyTorch and last on the board
    channels_first: bool | None = None


@dataclass(frozen=True, kw_only=True)
class CortexM4Options(SerialOptions, BoardOptions):
    """What ``CortexM4Driver`` takes."""

    #: a serial port or pty (``/dev/ttyACM0``, ``COM3``), ``tcp://host:port``, or a function that
    #: connects (``asyncinfer_drivers.cortex_m.transport.Connect``). On Windows, or as
    #: ``serialx:///dev/ttyACM0``, a serial port is opened by ``serialx``, else by
    #: ``pyserial``, for this process alone
    port: str | Connect = field(kw_only=False)
    #: the name of the model that is expected there. Of one called ``digits-4f059727f331`` the part
    #: before the last dash will do
    model: str | None = None
    #: the shape of an input that is expected there, as inputs have it, without the batch dimension
    input_shape: Sequence[int] | None = None
    #: the same for outputs
    output_shape: Sequence[int] | None = None
    #: whether a board may come back with another program than it had when it was first opened
    any_program: bool = False
    #: the times of the link, in seconds; by default ``Timing()``
    timing: Timing | None = None
