"""What to say of an operator that the board does not get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncinfer_drivers.cortex_m.builder.rewriting.names import layer_name, operator_name

if TYPE_CHECKING:
    from torch import fx

__all__ = ("Refusal", "WrongLayout", "refuse")

_NORMS = "normalise with BatchNorm, which costs nothing in integers"
_SEQUENCE = "use convolutions over time (Conv1d, with dilation for a long memory)"
_ATTENTION = "use convolutions, or squeeze-and-excite, which is supported"

#: by the beginning of the operator's name
_REMEDIES = {
    "aten.layer_norm": _NORMS,
    "aten.group_norm": _NORMS,
    "aten.instance_norm": _NORMS,
    "aten.rms_norm": _NORMS,
    "aten._fused_rms_norm": _NORMS,
    "aten.gru": _SEQUENCE,
    "aten.lstm": _SEQUENCE,
    "aten.rnn": _SEQUENCE,
    "aten.bmm": _ATTENTION,
    "aten.baddbmm": _ATTENTION,
    "aten.matmul": _ATTENTION,
    "aten.mm": _ATTENTION,
    "aten.einsum": _ATTENTION,
    "aten.scaled_dot_product_attention": _ATTENTION,
    "aten._transformer_encoder_layer_fwd": _ATTENTION,
    "aten._native_multi_head_attention": _ATTENTION,
    "aten.conv3d": "use Conv2d with the depth among the channels",
    "aten.conv_transpose3d": "use ConvTranspose2d with the depth among the channels",
    "aten.max_pool3d": "use MaxPool2d with the depth among the channels",
    "aten.avg_pool3d": "use AvgPool2d with the depth among the channels",
    "aten.embedding": "look the numbers up on the host, and let the model take them",
    "aten.softmax": "the board has it for vectors only; leave it to the host at the end",
    "aten.log_softmax": "leave it to the host at the end, or use Softmax",
    "aten.argmax": "leave it to the host at the end",
    "aten.topk": "leave it to the host at the end",
    "aten.cumsum": _SEQUENCE,
    "aten._fft": "compute the spectrum on the host, and let the model take it",
    "aten.stft": "compute the spectrum on the host, and let the model take it",
    "aten.adaptive": "take sizes that divide the input's, or 1",
}
_OTHERS = "put a supported one in its place (docs/firmware.md lists them)"


class Refusal(Exception):  # becomes a ConfigError that names the model
    """The model cannot be built; says which operator of which layer, and what to do."""


class WrongLayout(Refusal):
    """Numbers lie where this operator cannot reach them; another layout of the input may do."""


def refuse(node: fx.Node, reason: str = "is not supported", remedy: str = "") -> Refusal:
    """Of the operator ``node``."""
    name = operator_name(node)
    if not remedy:
        fitting = (text for start, text in _REMEDIES.items() if name.startswith(start))
        remedy = next(fitting, _OTHERS)
    layer = layer_name(node)
    where = f" of layer {layer!r}" if layer else ""
    return Refusal(f"operator {name}{where} {reason}: {remedy}")
