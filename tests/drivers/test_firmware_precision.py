"""INT8 beside float: right ranges, the compiler's own bits, and what a build says of its losses."""

import logging
import pickle
import shutil

import numpy as np
import pytest

from asyncinfer.errors import ConfigError

bakenn = pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from bakenn.frontends.torch_export import capture_torch_export  # noqa: E402
from bakenn.quantization import ptq_graph  # noqa: E402
from torch import nn  # noqa: E402

from asyncinfer_drivers.cortex_m.build import PrecisionError, build_firmware  # noqa: E402
from asyncinfer_drivers.cortex_m.builder import adapted, integer_kernels, pipeline  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.compile import capture  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.judge import encode  # noqa: E402

needs_gcc = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc"
)
# torch.export of this release warns about its own internals
pytestmark = pytest.mark.filterwarnings("default")

ACTIVATIONS = [nn.Sigmoid, nn.SiLU, nn.Hardswish, nn.Hardsigmoid]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(42)


def numbers(*shape):
    return np.random.default_rng(42).uniform(-1, 1, shape).astype(np.float32)


def sigmoid():
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(1)
        linear.bias.fill_(0)
    return nn.Sequential(linear, nn.Sigmoid())


def spoilt():
    """Ranges that one weight of the second layer makes useless for all others."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[2].weight[0, 0] = 1000  # its own output is as good as ever, by its largest channel
        net[4].weight[:, 0] = 0
    return net


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(4, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        up = self.up(torch.relu(self.down(x)))
        return x + up * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class Resized(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.end = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.end(nn.functional.interpolate(x, scale_factor=2, mode=self.mode))


#: between them all float layers whose loops are replaced; those of a sequence, which no build has
#: after rewriting, are left to the compiler
NETS = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 0), dilation=(1, 2), groups=2),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
            nn.ReLU6(),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        (4, 8, 6),
    ),
    "sequence": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 8, 3, 2, 1, groups=2),
            nn.Hardswish(),
            nn.MaxPool1d(3, 2, 1),
            nn.Conv1d(8, 8, 3, dilation=2),
            nn.AvgPool1d(2),
        ),
        (4, 40),
    ),
    "residual": (Residual, (4, 6, 6)),
    "pooled": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d((4, 3))),
        (2, 8, 7),
    ),
    "nearest": (lambda: Resized("nearest"), (3, 3, 5)),
    "bilinear": (lambda: Resized("bilinear"), (3, 5, 3)),
}


def exported(name, count=2):
    make, shape = NETS[name]
    inputs = 3 * numbers(count, *shape)
    return capture_torch_export(make().eval(), torch.from_numpy(inputs[:1])), inputs


# ---- the adaptation of the compiler


def test_the_compiler_still_needs_its_ranges_set_right():
    # when this fails, ``adapted._visible_consumers`` can go
    inputs = 4 * numbers(16, 1)
    graph = capture(sigmoid().eval(), inputs[:1], "sigmoid").graph
    wrong = bakenn.quantize_float_graph_with_report(graph, inputs).report
    right = adapted.quantize_graph(graph, inputs, bakenn.PTQOptions(), "sigmoid").report
    lowest = [
        next(edge for edge in report.edges if edge.name == "linear").representable_minimum
        for report in (wrong, right)
    ]
    assert lowest[0] == 0
    assert lowest[1] == pytest.approx(inputs.min(), abs=0.05)


def test_the_package_itself_stays_as_it_is():
    graph, inputs = exported("pooled")
    before = dict(vars(ptq_graph))
    adapted.quantize_graph(graph, inputs, bakenn.PTQOptions(), "net")
    assert dict(vars(ptq_graph)) == before


def test_another_version_of_the_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(bakenn, "__version__", "1.0.1")
    with pytest.raises(ConfigError, match=r"needs bakenn 1\.0\.0, not 1\.0\.1"):
        capture(sigmoid(), numbers(1, 1), "sigmoid")


@pytest.mark.parametrize("name", NETS)
def test_float_layers_have_the_bits_of_the_compilers_loops(name):
    graph, inputs = exported(name)
    for sample in inputs:
        mine, theirs = (
            adapted.evaluate(graph, sample[None]),
            ptq_graph._evaluate(graph, sample[None]),
        )
        assert mine.keys() == theirs.keys()
        for value in mine:
            np.testing.assert_array_equal(mine[value], theirs[value], value)


@pytest.mark.parametrize("name", NETS)
def test_the_calibration_finds_the_same_ranges(name):
    graph, inputs = exported(name)
    mine = adapted.quantize_graph(graph, inputs, bakenn.PTQOptions(), "net").report
    theirs = bakenn.quantize_float_graph_with_report(graph, inputs, name="net").report
    assert [(edge.name, edge.minimum, edge.maximum) for edge in mine.edges] == [
        (edge.name, edge.minimum, edge.maximum) for edge in theirs.edges
    ]


@pytest.mark.parametrize("name", NETS)
def test_integer_layers_are_those_of_the_compilers_reference(name, tmp_path):
    graph, inputs = exported(name)
    quantized = adapted.quantize_graph(graph, inputs, bakenn.PTQOptions(), "net").graph
    plan = bakenn.compile(quantized, tmp_path / "c", model_name="net").plan
    shape = plan.tensors[plan.inputs[0]].tensor_type.shape
    codes = np.random.default_rng(42).integers(-128, 128, shape).astype(np.int8)
    mine = integer_kernels.trace(plan, codes)
    for value, right in bakenn.run_reference_trace(plan, codes).items():
        np.testing.assert_array_equal(mine[value], right, value)


# ---- what a build measures


@needs_gcc
def test_a_sigmoid_sees_all_that_comes_in():
    inputs = np.arange(-4, 5, dtype=np.float32)[:, None]
    made = build_firmware(sigmoid(), inputs)
    codes = made.reference(encode(made.input, inputs)).astype(float)
    found = (codes - made.output.zero_point) * made.output.scale
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-inputs)), atol=0.004)
    assert made.precision.snr_db > 45
    assert made.precision.argmax_agreement is None


@needs_gcc
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_lose_little(activation):
    net = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 4))
    precision = build_firmware(net, numbers(64, 4)).precision
    assert precision.snr_db >= 40
    assert precision.argmax_agreement > 0.95
    assert [layer.name for layer in precision.layers][1] == "0 (Linear)"


@needs_gcc
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: nn.Conv1d(8, 8, 3, padding=1), (8, 8)),
        (lambda: nn.Conv2d(6, 6, 3, padding=1), (6, 6, 6)),
    ],
)
def test_layouts_that_look_alike_are_not_mixed_up(net, shape):
    precision = build_firmware(net(), numbers(4, *shape)).precision
    assert precision.snr_db > 35
    assert precision.argmax_agreement > 0.9


@needs_gcc
def test_a_bad_build_says_which_layer_loses_it(caplog, tmp_path):
    net, told = spoilt(), []
    with caplog.at_level(logging.WARNING, "asyncinfer.cortex_m"):
        build_firmware(net, numbers(16, 8), progress=told.append)
    (warned,) = caplog.messages
    assert "less than 25 dB" in warned
    assert "2 (Linear, ReLU) loses" in warned
    assert "calibrating: 16 of 16 inputs" in told
    with pytest.raises(PrecisionError, match=r"2 \(Linear, ReLU\) loses") as caught:
        build_firmware(net, numbers(16, 8), min_snr=30, output=tmp_path / "out")
    assert caught.value.precision.snr_db < 25
    assert pickle.loads(pickle.dumps(caught.value)).precision == caught.value.precision  # noqa: S301
    assert not (tmp_path / "out").exists()


@needs_gcc
def test_a_large_constant_does_not_hide_that_the_rest_is_lost(caplog):
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.bias.fill_(1000)
    with caplog.at_level(logging.WARNING, "asyncinfer.cortex_m"):
        precision = build_firmware(net, numbers(16, 4)).precision
    assert precision.snr_db > 50
    assert precision.variation_db < 3
    assert "of what differs between outputs" in caplog.text


# ---- built once


@needs_gcc
def test_the_same_content_is_built_once(tmp_path, monkeypatch):
    def net(last):
        torch.manual_seed(42)
        return nn.Sequential(nn.Linear(4, 3), last)

    inputs = numbers(5, 4)
    made = build_firmware(net(nn.ReLU()), inputs)
    others = [build_firmware(net(nn.SiLU()), inputs), build_firmware(net(nn.ReLU()), inputs * 2)]
    assert len({made.directory, *(other.directory for other in others)}) == 3
    monkeypatch.setattr(pipeline, "compile_model", None)  # nothing is built from here on
    assert build_firmware(net(nn.ReLU()), inputs) == made
    (tmp_path / "out").mkdir(mode=0o755)
    copied = build_firmware(net(nn.ReLU()), inputs, output=tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert copied.elf.read_bytes() == made.elf.read_bytes()
    assert copied.elf.parent == tmp_path / "out"
    assert copied.precision == made.precision
    assert type(copied).load(copied.directory) == copied
