"""The model that tritonclient's examples ask for."""

from torch import nn


class Simple(nn.Module):
    """Sum and difference of two rows."""

    def forward(self, INPUT0, INPUT1):  # noqa: N803  # as the examples call them
        return {"OUTPUT0": INPUT0 + INPUT1, "OUTPUT1": INPUT0 - INPUT1}


class Simple8(Simple):
    """The same, under a name of its own."""
