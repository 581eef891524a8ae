"""A torch model of several inputs, to be named in a config."""

from torch import nn


class Two(nn.Module):
    """The sum, which may be scaled, and the difference."""

    def forward(self, a, b, scale=None):
        total = a + b if scale is None else (a + b) * scale[:, None]
        return {"sum": total, "difference": a - b}
