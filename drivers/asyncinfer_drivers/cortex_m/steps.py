"""What is done around the board's model: the caller's steps, and the conversion of numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers.cortex_m.log import logger
from asyncinfer_drivers.cortex_m.options import BoardOptions
from asyncinfer_drivers.cortex_m.results import ResultCodec, mapped
from asyncinfer_drivers.cortex_m.specs import BoardSpec
from asyncinfer_drivers.cortex_m.tensors import InputCodec, is_torch

__all__ = ("Steps",)


class Steps:
    """From inputs to the bytes of samples and from outputs' bytes to results.

    The caller's own steps run in a thread that lives from ``start`` to ``stop``; without them there
    is none.
    """

    def __init__(self, options: BoardOptions) -> None:
        self._name = options.name
        self._preprocess = options.preprocess
        self._postprocess = options.postprocess
        self._raw = options.raw
        self._channels_first = options.channels_first
        self._worker: Worker | None = None
        self._codecs: tuple[InputCodec, ResultCodec] | None = None
        self._warned = False

    @property
    def cut_off(self) -> int:
        """How many inputs this board got with numbers far beyond its range."""
        return self._codecs[0].cut_off if self._codecs else 0

    def start(self) -> None:
        """Start the thread, if there is anything for it to do."""
        if self._worker is None and (self._preprocess or self._postprocess):
            self._worker = Worker(self._name)
            self._worker.start()

    async def stop(self) -> None:
        """End the thread, after what runs in it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    def fit(self, board: BoardSpec) -> None:
        """Convert for this board's tensors from now on."""
        self._codecs = self.codecs(board)

    def codecs(self, board: BoardSpec) -> tuple[InputCodec, ResultCodec]:
        """What converts for this board's tensors; ``ConfigError`` if an option is missing."""
        said: dict[str, Any] = {"raw": self._raw, "channels_first": self._channels_first}
        try:
            return InputCodec(board.inputs[0], **said), ResultCodec(board.outputs, **said)
        except ConfigError as error:
            raise ConfigError(f"{self._name}: {error}") from None

    def zeros(self) -> bytes:
        """A sample to warm up with."""
        return self._codec()[0].zeros()

    async def before(self, batch: Sequence[Any]) -> tuple[list[Any], list[bool]]:
        """The bytes of each input's sample or its error; and which inputs were torch tensors."""
        if self._preprocess is None:
            return self._before(batch)
        return await self._thread().run(self._before, batch)

    async def after(self, outputs: list[Any], good: list[int], tensors: list[bool]) -> list[Any]:
        """The results of the bytes of samples among ``outputs``: those at ``good``."""
        if self._postprocess is None:
            return self._after(outputs, good, tensors)
        return await self._thread().run(self._after, outputs, good, tensors)

    def _before(self, batch: Sequence[Any]) -> tuple[list[Any], list[bool]]:
        encode = self._codec()[0].encode
        samples, tensors = list[Any](), list[bool]()
        for item in batch:
            tensor = False
            try:
                made = item if self._preprocess is None else self._preprocess(item)
                tensor = is_torch(made)
                samples.append(encode(made.detach().cpu() if tensor else made))
            except Exception as error:
                samples.append(error)
            tensors.append(tensor)
        if self.cut_off and not self._warned:
            self._warn()
        return samples, tensors

    def _warn(self) -> None:
        """Say once that the board sees other numbers than it is given."""
        self._warned = True
        codec = self._codec()[0]
        low, high = codec.range
        logger.warning(
            "%s: an input has %.4g, and the board takes %.4g to %.4g, as its calibration inputs "
            "had: what is beyond is cut off. Scale inputs as those were, or calibrate with such",
            self._name,
            codec.beyond,
            low,
            high,
        )

    def _after(self, outputs: list[Any], good: list[int], tensors: list[bool]) -> list[Any]:
        decode = self._codec()[1].decode
        for index in good:
            data = outputs[index]
            if isinstance(data, bytes):
                outputs[index] = self._result(decode(data, 1)[0], tensors[index])
        return outputs

    def _result(self, array: Any, tensor: bool) -> Any:
        row = mapped(array, sys.modules["torch"].from_numpy) if tensor else array
        if self._postprocess is None:
            return row
        try:
            return self._postprocess(row)
        except Exception as error:
            return error

    def _codec(self) -> tuple[InputCodec, ResultCodec]:
        if self._codecs is None:
            raise DeviceLost(self._name, "not open")
        return self._codecs

    def _thread(self) -> Worker:
        if self._worker is None:
            raise DeviceLost(self._name, "not open")
        return self._worker
