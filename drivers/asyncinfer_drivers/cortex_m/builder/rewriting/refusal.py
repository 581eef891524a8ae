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

_BRANCH = "compute the same for all inputs: a board's program does not branch"
_COMPARE = (
    "compare with a number at the end of the model; in the middle use ReLU, Threshold, Hardtanh or "
    "another function of one number"
)
_MASK = "multiply by a mask of ones and zeros if it is known; else use ReLU, Threshold or Hardtanh"
_SPECTRUM = "compute the spectrum on the host, and let the model take it"
_OWN_NORM = "divide a tensor by its own norm, at the end of the model"
_FLOAT = "give the float module, as the build quantises it itself"

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
    "aten._fft": _SPECTRUM,
    "aten.stft": _SPECTRUM,
    "aten.adaptive": "take sizes that divide the input's, or 1",
    "wrap_with_autocast": "leave out torch.autocast: the board's numbers are integers",
    "cond": _BRANCH,
    "while_loop": _BRANCH,
    "aten.where": _MASK,
    "aten.masked_fill": _MASK,
    **{f"aten.{name}.": _COMPARE for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    "aten.maximum": "write maximum(a, b) as a + relu(b - a)",
    "aten.minimum": "write minimum(a, b) as a - relu(a - b)",
    "aten.max.default": "take it over an axis",
    "aten.min.default": "take it over an axis",
    "aten.std": _NORMS,
    "aten.var": _NORMS,
    "aten._upsample_nearest_exact": 'use mode="nearest"',
    "aten.upsample_bicubic": 'use mode="bilinear"',
    "aten.im2col": "use Conv2d",
    "aten.fft": _SPECTRUM,
    "aten.fake_quantize": _FLOAT,
    "quantized_decomposed": _FLOAT,
    "aten.max_pool2d_with_indices": "leave out return_indices",
    "aten.zeros_like": "for zeros beside a tensor use F.pad",
    "aten.div.Tensor": "divide by known numbers, or leave F.normalize to the host at the end",
    "aten.bilinear": _ATTENTION,
    **dict.fromkeys(("aten.linalg_vector_norm", "aten.linalg_norm", "aten.norm"), _OWN_NORM),
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
