"""What to do about a module that ``torch.export`` or the compiler does not take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ("call_remedy", "compiler_remedy", "export_remedy", "quantised_before")

_BRANCHES = (
    "it decides by the numbers of its input, and a board's program does not branch: compute the "
    "same for all inputs"
)
_QUANTISED = (
    "it is quantised or observed already, by torch.ao: give the float module, as the build "
    "quantises it itself"
)
_SCRIPT = "it is TorchScript, or has a part that is: give the nn.Module that this was made of"
_OTHERS = "it has to be one that torch.export.export(module, (input,), strict=False) takes"

#: by what an error of torch.export says
_OF_EXPORT = {
    "data-dependent": _BRANCHES,
    "fake tensor": "take x.detach() in the place of x.data, and keep no tensor for another call",
    ".numpy()": "write it with torch's operators, without NumPy",
}
#: by what a call with one input says
_OF_CALL = {
    "size()[0] ==": "export it for a batch of one, or of any size",
    "flatten user inputs": "a board's model takes one tensor",
    "missing 1 required positional": "a board's model takes one tensor",
}
#: by what the compiler says
_OF_COMPILER = {
    "bias exceeds int32": "a bias is too large beside its layer's inputs and weights: give larger "
    "inputs, scaled on the host, or normalise with BatchNorm",
}
#: where torch.export says which line of the module it was
_LINE = re.compile(r'File "[^"]*", line \d+, in \w+\n\s+(.+)')


def export_remedy(module: nn.Module, error: Exception) -> str:
    """What to do about ``error``, which ``torch.export`` raised for ``module``."""
    import torch

    if text := quantised_before(module):
        return text
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return _SCRIPT
    said = str(error)
    remedy = next((text for sign, text in _OF_EXPORT.items() if sign in said), _OTHERS)
    lines = _LINE.findall(said)
    return f"{remedy} (in {lines[-1].strip()!r})" if lines else remedy


def quantised_before(module: nn.Module) -> str:
    """What to do if parts of ``module`` are of torch's own quantisation; empty if none is."""
    kinds = (type(part).__module__ for part in module.modules())
    return _QUANTISED if any(kind.startswith(("torch.ao.", "torchao.")) for kind in kinds) else ""


def call_remedy(error: Exception, first: str) -> str:
    """What to do about ``error`` of a call with one input, which begins so; empty if unknown."""
    if isinstance(error, NotImplementedError):
        return "it has no forward()"
    return next((text for sign, text in _OF_CALL.items() if sign in first), "")


def compiler_remedy(said: str) -> str:
    """What to do about an error of the compiler; empty if that is not known."""
    return next((text for sign, text in _OF_COMPILER.items() if sign in said), "")
