"""How near the board's integers come to the float module, and which layers lose it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncinfer.errors import ConfigError

__all__ = ("BEST_SNR", "SNR_BAR", "LayerPrecision", "Precision", "PrecisionError")

#: decibels; a build with less says which layers lose them
SNR_BAR = 25.0

#: the most that 8 bits give, about: what a layer loses is counted from here
BEST_SNR = 50.0
#: decibels; a layer that loses less is not blamed
_BLAMED = 3.0
#: decibels of the differences between outputs; with less, a third of them or more is noise
_VARIATION_BAR = 10.0


@dataclass(frozen=True)
class LayerPrecision:
    """What one layer loses in integers."""

    #: the module's name where it has weights, else the operation's: ``features.0 (Conv2D, ReLU)``
    name: str
    #: signal to noise in decibels of the model's output, if all up to this layer is in integers and
    #: the rest in float; infinite if nothing differs
    snr_db: float
    #: by how much that is less than what came in; at the input, than what 8 bits give
    lost_db: float
    #: the largest difference of its own numbers
    worst_error: float


@dataclass(frozen=True)
class Precision:
    """The integer reference beside the float module, on the calibration inputs."""

    #: how many inputs were compared
    samples: int
    #: signal to noise in decibels, over all outputs; infinite if nothing differs
    snr_db: float
    #: the largest difference of an output
    worst_error: float
    #: share of outputs whose largest channel is the same, at each place if there are several;
    #: ``None`` with one channel
    argmax_agreement: float | None
    #: signal to noise of what differs from input to input, without what each output always is;
    #: ``None`` if nothing does
    variation_db: float | None = None
    #: layer by layer, on a few of the inputs
    layers: tuple[LayerPrecision, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Precision:
        """From the plain data that ``dataclasses.asdict`` made of it."""
        layers = tuple(LayerPrecision(**layer) for layer in record["layers"])
        return cls(**{**record, "layers": layers})

    def losses(self) -> str:
        """Which layers lose most, as text."""
        worst = sorted(self.layers, key=lambda layer: -layer.lost_db)[:3]
        texts = [
            f"{layer.name} loses {layer.lost_db:.1f} dB and leaves {layer.snr_db:.1f}"
            for layer in worst
            if layer.lost_db >= _BLAMED
        ]
        return "; ".join(texts) or "each layer loses a little"

    def complaint(self, name: str, bar: float = SNR_BAR) -> str | None:
        """What to say of the model ``name`` if it is below ``bar``; else ``None``."""
        if self.snr_db >= bar:
            return None
        return (
            f"model {name!r} has {self.snr_db:.1f} dB of signal to noise in INT8 on the "
            f"calibration inputs, less than {bar:g} dB: {self.losses()}"
        )

    def doubt(self, name: str) -> str | None:
        """What to say if outputs are right on the whole, and their differences are lost."""
        if self.variation_db is None or self.variation_db >= _VARIATION_BAR:
            return None
        return (
            f"model {name!r}: INT8 leaves {self.variation_db:.1f} dB of what differs between "
            "outputs, which is little beside their size: is it trained? add a large constant on "
            "the host"
        )


class PrecisionError(ConfigError):
    """The model loses more in INT8 than was allowed."""

    def __init__(self, message: str, precision: Precision) -> None:
        super().__init__(message)
        #: what was measured
        self.precision = precision

    def __reduce__(self) -> tuple[type[PrecisionError], tuple[str, Precision]]:
        return type(self), (str(self), self.precision)
