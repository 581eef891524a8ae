"""What a build is given: modules that a board cannot be, and calibration inputs of all kinds."""

import numpy as np
import pytest

from asyncinfer.errors import ConfigError

pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from asyncinfer_drivers.cortex_m.builder.compile import capture  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.samples import load_module, load_samples  # noqa: E402

X = np.ones((4, 2), np.float32)


class Remembers(nn.Module):
    """A moving average, kept in one of many ways."""

    def __init__(self, keep):
        super().__init__()
        self.register_buffer("kept", torch.zeros(1, 12))
        self.plain, self.calls, self.keep = torch.zeros(1, 12), 0, keep
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        return self.last(self.keep(self, x))


def in_a_buffer(module, x):
    module.kept.copy_(0.9 * module.kept + 0.1 * x)
    return module.kept


def in_an_attribute(module, x):
    module.plain = 0.9 * module.plain + 0.1 * x
    return module.plain


def in_a_number(module, x):
    module.calls += 1
    return x * module.calls


@pytest.mark.parametrize("keep", [in_a_buffer, in_an_attribute, in_a_number])
def test_a_module_that_keeps_state_is_refused_before_it_answers_from_its_start(keep):
    with pytest.raises(ConfigError, match=r"keeps state between calls.*return the new one"):
        capture(Remembers(keep).eval(), np.ones((1, 12), np.float32), "net")


@pytest.mark.parametrize("sample", [0, 1])  # of zeros, dropout leaves the same
def test_a_module_that_draws_random_numbers_is_refused(sample):
    module = nn.Sequential(nn.Linear(12, 12, bias=False), Always())
    with pytest.raises(ConfigError, match=r"random numbers.*training=self\.training"):
        capture(module.eval(), np.full((1, 12), sample, np.float32), "net")


class Always(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5)


def test_a_counter_that_no_result_reads_is_no_state():
    def counted(module, x):
        module.calls += 1
        return x

    capture(Remembers(counted).eval(), np.ones((1, 12), np.float32), "net")


def test_weights_of_another_kind_are_named():
    with pytest.raises(ConfigError, match=r"weights of torch.float64: make them torch.float32"):
        capture(nn.Linear(12, 3).double(), np.ones((1, 12), np.float32), "net")


def test_the_given_module_is_not_changed():
    module = Remembers(in_a_buffer).eval()
    copy = load_module(module)
    copy(torch.ones(1, 12))
    assert not module.kept.any()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.ones(4, 2, requires_grad=True), X),
        ([torch.ones(2, dtype=torch.bfloat16, requires_grad=True)] * 4, X),
        (X.tolist(), X),
        (X.astype(bool), X),
        (lambda: X, "not a function: stack"),
        ((row for row in X), "not a generator: stack"),
        (torch.utils.data.TensorDataset(torch.ones(4, 2)), "not a TensorDataset: stack"),
        (torch.utils.data.DataLoader(X), "not a DataLoader: stack"),
        ({"x": X}, "not a dict: stack"),
        (None, "not a NoneType: stack"),
        ([[1, 2], [3]], "inhomogeneous"),
        (["a", "b"], "could not convert"),
        (X + 1j, "complex numbers"),
        (torch.ones(4, 2, device="meta"), "meta"),
        (X.astype(np.float64) * 1e39, "not finite"),
    ],
)
def test_calibration_inputs_of_all_kinds(given, wanted):
    if isinstance(wanted, str):
        with pytest.raises(ConfigError, match=wanted):
            load_samples(given)
    else:
        assert load_samples(given).inputs.tolist() == wanted.tolist()


def test_a_file_of_complex_numbers_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", X + 1j)
    with pytest.raises(ConfigError, match="complex numbers"):
        load_samples(tmp_path / "x.npy")
