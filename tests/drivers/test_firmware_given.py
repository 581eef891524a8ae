"""What a build is given: modules that a board cannot be, and calibration inputs of all kinds."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asyncinfer.errors import ConfigError

pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from asyncinfer_drivers.cortex_m.builder.compile import capture  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.samples import (  # noqa: E402
    load_module,
    load_samples,
    model_name,
)

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


class Function(nn.Module):
    """A function of a linear layer's numbers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function = nn.Linear(12, 3), function

    def forward(self, x):
        return self.function(self.first(x))


def observed():
    import torch.ao.quantization as ao

    module = nn.Sequential(nn.Linear(12, 3)).train()
    module.qconfig = ao.get_default_qat_qconfig("fbgemm")
    return ao.prepare_qat(module)


def without_weights(weight, bias):
    module = nn.Linear(12, 3)
    nn.init.constant_(module.weight, weight)
    nn.init.constant_(module.bias, bias)
    return nn.Sequential(module)


def in_bfloat16(x):
    return ((x * 0).bfloat16() + 1.003).float()  # which is 1 there


def by_its_numbers(x):
    return x if x.sum() > 0 else -x


def under_autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return functional.linear(x, torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.trace(nn.Linear(12, 3), torch.ones(1, 12)), r"TorchScript.*nn\.Module"),
        (observed, r"torch\.ao: give the float module"),
        (lambda: Function(by_its_numbers), r"does not branch: compute the same .*if|x if x.sum"),
        (lambda: Function(lambda x: x.data * 2), r"take x\.detach"),
        (lambda: Function(lambda x: torch.from_numpy(x.numpy())), "without NumPy"),
        (lambda: Function(under_autocast), r"leave out torch\.autocast"),
        (lambda: Function(in_bfloat16), r"torch\.bfloat16: make it float32"),
        (lambda: Function(lambda x: torch.where(x > 0, x, -x)), "compare with a number at the end"),
        (nn.Module, "has no forward"),
        (lambda: nn.Bilinear(12, 12, 2), "a board's model takes one tensor"),
        (lambda: without_weights(0, 1), r"layer '0' has weights that are all zero: leave it out"),
        (lambda: without_weights(float("nan"), 1), r"0\.weight holds numbers that are not finite"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(make, message):
    with pytest.raises(ConfigError, match=message):
        capture(make().eval(), np.ones((1, 12), np.float32), "net")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), "meta.*: load its weights first"),
        (lambda: nn.LazyLinear(2), "has lazy layers: call it once"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_module_without_weights_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        load_module(make())


def test_a_layer_called_name_names_nothing():
    module = nn.Sequential(nn.Linear(2, 2))
    module.name = nn.ReLU()
    assert model_name(module) == "Sequential"


def test_models_are_exported_in_several_threads():
    def build():
        for _ in range(5):
            layers = [layer for _ in range(8) for layer in (nn.Linear(12, 12), nn.Tanh())]
            capture(nn.Sequential(*layers), np.ones((1, 12), np.float32), "net")

    with ThreadPoolExecutor(3) as pool:  # as boards that are opened at once
        for made in [pool.submit(build) for _ in range(3)]:
            made.result()


def test_a_file_for_several_inputs_at_once_is_refused(tmp_path):
    file = tmp_path / "four.pt2"
    torch.export.save(torch.export.export(nn.Linear(12, 3), (torch.ones(4, 12),)), file)
    with pytest.raises(ConfigError, match="export it for a batch of one"):
        capture(load_module(file), np.ones((1, 12), np.float32), "net")
