"""Operators that the INT8 compiler lacks, by those that it has: in float they are the same."""

import numpy as np
import pytest

from asyncinfer.errors import ConfigError

pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from asyncinfer_drivers.cortex_m.builder import adapted  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.compile import capture  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.rewriting.call import RULES  # noqa: E402
from asyncinfer_drivers.cortex_m.constants import Datatype  # noqa: E402
from asyncinfer_drivers.cortex_m.results import ResultCodec  # noqa: E402
from asyncinfer_drivers.cortex_m.specs import TensorSpec  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

PICTURE, SEQUENCE, VECTOR = (4, 6, 8), (4, 12), (12,)


class Does(nn.Module):
    """A function between two layers."""

    def __init__(self, function, shape, last=True):
        super().__init__()
        kind = {1: nn.Linear, 2: nn.Conv1d, 3: nn.Conv2d}[len(shape)]
        self.first = kind(shape[0], shape[0], *([1] if len(shape) > 1 else []))
        self.function = function

    def forward(self, x):
        return self.function(self.first(x))


def returns(what):
    """A module whose results are ``what`` of the numbers of a linear layer."""
    return Does(what, VECTOR).eval()


def after(layer, shape):
    return Does(layer, shape)


#: what is done after a layer, and the shape that it is done to
CASES = {
    "one of a vector": (lambda x: x.softmax(1)[:, 1], VECTOR),
    "one of a picture": (lambda x: x[:, 2, 1, 3], PICTURE),
    "one without its axes": (lambda x: x[:, 2:3].squeeze(), VECTOR),
    "picked by a list": (lambda x: x[:, [3, 0, 1, 1]], PICTURE),
    "same": (nn.Conv2d(4, 4, (3, 4), padding="same", dilation=(2, 1)), PICTURE),
    "same in time": (nn.Conv1d(4, 6, 4, padding="same"), SEQUENCE),
    "causal": (
        lambda x: functional.conv1d(functional.pad(x, (4, 0)), torch.ones(2, 4, 3), dilation=2),
        SEQUENCE,
    ),
    "asymmetric": (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 3, 3, 2, 1)), PICTURE),
    "constant pad": (nn.ConstantPad2d((1, 0, 2, 1), 0.5), PICTURE),
    "cropped": (nn.ZeroPad2d((-1, -2, 1, 0)), PICTURE),
    "reflected": (nn.ReflectionPad1d(3), SEQUENCE),
    "circular": (nn.CircularPad2d(1), PICTURE),
    "zero channels": (lambda x: functional.pad(x, (0, 0, 0, 0, 1, 2)), PICTURE),
    "pooled to sizes": (nn.AdaptiveAvgPool2d((3, 2)), PICTURE),
    "pooled in time": (nn.AdaptiveAvgPool1d(1), SEQUENCE),
    "largest": (nn.AdaptiveMaxPool2d(1), PICTURE),
    "largest of axes": (lambda x: x.amax((2, 3)), PICTURE),
    "ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), PICTURE),
    "average with zeros": (nn.AvgPool2d(3, 2, 1), PICTURE),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), PICTURE),
    "mean of rows": (lambda x: x.mean(2), PICTURE),
    "sum": (lambda x: x.sum(-1), SEQUENCE),
    "slopes": (nn.PReLU(4, 0.3), PICTURE),
    "tanh": (torch.tanh, VECTOR),
    "gelu": (nn.GELU("tanh"), SEQUENCE),
    "hardtanh": (nn.Hardtanh(-0.5, 0.25), PICTURE),
    "one limit": (lambda x: x.clamp(max=0.2) * 2, VECTOR),
    "log of a sigmoid": (nn.LogSigmoid(), VECTOR),
    "random slopes": (nn.RReLU(), VECTOR),
    "repeated": (lambda x: x.repeat(1, 2, 1, 1), PICTURE),
    "chained": (lambda x: torch.exp(-(x**2)) * 3 + 1, VECTOR),
    "glu": (nn.GLU(1), PICTURE),
    "normalised": (
        lambda x: (
            (x - torch.arange(4.0).view(4, 1, 1)) / torch.tensor([1.0, 2, 4, 8]).view(4, 1, 1)
        ),
        PICTURE,
    ),
    "positions": (lambda x: x + torch.arange(12.0) / 12, SEQUENCE),
    "scale of a transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), nn.BatchNorm2d(3)),
        PICTURE,
    ),
    "pre-activation": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)),
        PICTURE,
    ),
    "batch norm, valid convolution": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)),
        PICTURE,
    ),
    "batch norm, linear": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(192, 3)),
        PICTURE,
    ),
    "groups": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU()), PICTURE),
    "groups in time": (nn.Conv1d(4, 8, 3, groups=4), SEQUENCE),
    "shuffled, depthwise": (
        nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(4, 8, 3, groups=4)),
        PICTURE,
    ),
    "shuffled, added": (lambda x: x + functional.channel_shuffle(x, 2), PICTURE),
    "shuffled, halved": (lambda x: functional.channel_shuffle(x, 2).chunk(2, 1)[1], PICTURE),
    "pixel shuffle": (nn.PixelShuffle(2), PICTURE),
    "pixel unshuffle": (nn.PixelUnshuffle(2), PICTURE),
    "space to depth": (lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1), PICTURE),
    "stacked": (lambda x: torch.stack([x[:, 0], x[:, 2]], 1), PICTURE),
    "flipped": (lambda x: x.flip(1), PICTURE),
    "last step": (lambda x: x[:, :, -1], SEQUENCE),
    "linear on channels": (
        lambda x: functional.linear(x.transpose(1, 2), torch.ones(3, 4).cumsum(1)),
        SEQUENCE,
    ),
    "linear on time": (nn.Linear(12, 5), SEQUENCE),
    "product with known numbers": (lambda x: x @ torch.arange(24.0).view(12, 2), VECTOR),
    "gate": (lambda x: x * torch.sigmoid(x.mean((2, 3))).view(1, 4, 1, 1), PICTURE),
    "gate, expanded": (lambda x: x * x.mean((2, 3))[..., None, None].expand_as(x), PICTURE),
    "difference": (lambda x: x - torch.relu(x), PICTURE),
    "difference with alpha": (
        lambda x: torch.sub(torch.sigmoid(x), torch.relu(x), alpha=2),
        VECTOR,
    ),
    "reversed difference": (lambda x: 1 - x, SEQUENCE),
    "squared": (lambda x: x * x, VECTOR),
    "in place": (lambda x: torch.relu_(x).add_(1) * x, VECTOR),
    "flattened result": (nn.Flatten(), PICTURE),
    "reshaped to a map": (
        nn.Sequential(
            nn.Linear(12, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2)), nn.ConvTranspose2d(6, 2, 2, 2)
        ),
        VECTOR,
    ),
    "nearest in time": (nn.Upsample(scale_factor=2), SEQUENCE),
    "linear in time": (nn.Upsample(scale_factor=2, mode="linear"), SEQUENCE),
    "softmax": (nn.Softmax(-1), VECTOR),
    "weights made of others": (nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), SEQUENCE),
}


@pytest.mark.parametrize("name", CASES)
def test_the_float_graph_is_the_module(name):
    torch.manual_seed(42)
    function, shape = CASES[name]
    module = Does(function, shape).eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -1, 1)
            part.running_mean.uniform_(-1, 1)
    sample = np.random.default_rng(42).normal(size=(1, *shape)).astype(np.float32)
    captured = capture(module, sample, name)  # refuses what is off itself
    values = adapted.evaluate(captured.graph, captured.samples(sample))
    (port,), found = captured.converted.outputs, values[captured.graph.outputs[0]]
    board = np.moveaxis(found, 1, -1) if found.ndim > 2 else found
    with torch.inference_mode():
        right = module(torch.from_numpy(sample)).numpy()
    lies = port.from_board(board.reshape(1, *port.board_shape))
    assert lies.shape == (1, *right.shape[1:])  # without a batch if that is squeezed too
    np.testing.assert_allclose(lies, right, rtol=1e-4, atol=1e-4 * np.abs(right).max())


def kinds(module, *shape):
    sample = np.ones((1, *shape), np.float32)
    return [type(op).__name__ for op in capture(module.eval(), sample, "net").graph.ops]


def test_what_can_be_in_weights_costs_nothing():
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight)
    assert kinds(nn.Sequential(norm, nn.Conv2d(4, 4, 3)), *PICTURE) == ["FloatConv2DOp"]
    assert kinds(nn.Sequential(nn.Conv2d(4, 4, 3), norm), *PICTURE) == ["FloatConv2DOp"]
    shuffled = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ChannelShuffle(2), nn.Conv2d(4, 4, 1))
    assert kinds(shuffled, *PICTURE) == ["FloatConv2DOp", "FloatConv2DOp"]
    padded = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3))
    assert kinds(padded, *PICTURE) == ["FloatConv2DOp"]
    assert kinds(nn.Sequential(nn.Linear(12, 3), nn.Tanh(), nn.Softplus()), *VECTOR) == [
        "FloatLinearOp",
        "Table",
    ]


def test_a_shift_before_padding_stays():
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight)
    padded = nn.Sequential(norm, nn.Conv2d(4, 4, 3, padding=1))
    assert kinds(padded, *PICTURE) == ["FloatConv2DOp"]  # it shifts by nothing
    nn.init.ones_(norm.bias)
    assert kinds(padded, *PICTURE) == ["FloatDepthwiseConv2DOp", "FloatConv2DOp"]


class Changes(nn.Module):
    def forward(self, x):
        part = x.relu().clone()
        part[:, :2].add_(1)
        return part


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12)), VECTOR, "layer_norm.*'1'.*BatchNorm"),
        (
            returns(lambda x: x / (x + 1).norm(dim=1, keepdim=True)),
            VECTOR,
            r"norm\.default.* by its own norm",
        ),
        (nn.AdaptiveAvgPool2d((4, 4)), PICTURE, "adaptive_avg_pool2d.* divide 6 x 8"),
        (Changes(), VECTOR, r"add_\.Tensor changes a tensor .*: write it without the underscore"),
    ],
)
def test_refusals_name_operator_and_remedy(module, shape, message):
    with pytest.raises(ConfigError, match=message):
        capture(module.eval(), np.ones((1, *shape), np.float32), "net")


def test_a_rule_that_is_wrong_builds_nothing(monkeypatch):
    def wrong(net, call):
        return call["self"]

    monkeypatch.setitem(RULES, "aten.relu.default", wrong)
    with pytest.raises(ConfigError, match=r"off by .* report this model"):
        capture(nn.ReLU(), -np.ones((1, 4), np.float32), "net")


def test_the_end_of_a_model_is_left_to_the_host_by_name():
    module = Does(lambda x: {"best": x.argmax(1), "first": x.topk(2).indices.flip(1)}, VECTOR)
    captured = capture(module.eval(), np.ones((1, 12), np.float32), "net")
    assert captured.output_names == ("output['best'] | argmax(1)", "output['first']")
    assert captured.on_host == (
        "output['first']: topk_indices(2), flip([1])",
    )  # no driver does that


@pytest.mark.parametrize(
    ("names", "result"),
    [
        (["output"], [1, 2]),
        (["output['a']"], {"a": [1, 2]}),
        (["output[0]", "output[1]"], ([1, 2], [3])),
        (["output['a']", "output['b'][0]"], {"a": [1, 2], "b": ([3],)}),
        (["output.logits", "output.state"], {"logits": [1, 2], "state": [3]}),
        (["left", "right"], ([1, 2], [3])),
        (["output{3}", "output{-7}"], {3: [1, 2], -7: [3]}),
        (['output["it\'s"]', "output['a\"b']"], {"it's": [1, 2], 'a"b': [3]}),
        (["output['it\\'s \"b\"']", "output['[0]']"], {'it\'s "b"': [1, 2], "[0]": [3]}),
        (["output['\\q'][0]", "output['\\x']"], ([1, 2], [3])),  # not as a key is written
    ],
)
def test_results_have_the_modules_structure(names, result):
    specs = [TensorSpec(name, Datatype.INT8, (2 - at,)) for at, name in enumerate(names)]
    (found,) = ResultCodec(specs).decode(bytes([1, 2, 3][: sum(spec.size for spec in specs)]), 1)
    assert _lists(found) == result


@pytest.mark.parametrize(
    "what",
    [
        lambda x: {3: x, 7: x + 1},
        lambda x: {"it's": x, 'a"b': [x + 1], "c | argmax(1)": {0: x}},
        lambda x: (x, {"a\nb": x + 1, "\\": x, "\u00e9[0]": x}),
    ],
)
def test_results_are_where_the_module_has_them(what):
    captured = capture(returns(what), np.ones((1, 12), np.float32), "net")
    specs = [TensorSpec(name, Datatype.INT8, (12,)) for name in captured.output_names]
    (found,) = ResultCodec(specs).decode(bytes(12 * len(specs)), 1)
    wanted = torch.utils._pytree.tree_map(lambda x: 0, what(torch.zeros(1)))
    assert _places(found) == _places(wanted)


def _places(value):
    if isinstance(value, dict):
        return {key: _places(part) for key, part in value.items()}
    return [_places(part) for part in value] if isinstance(value, list | tuple) else None


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: (None, x), r"returns None at \[0\], no tensor: leave it out"),
        (lambda x: {"a": x, "n": 3}, r"returns 3 at \['n'\], no tensor: leave it out"),
        (lambda x: {(1, 2): x}, r"has the key \(1, 2\): take text as keys"),
        (lambda x: {"k" * 300: x}, "more than 255 bytes: take shorter keys"),
        (lambda x: {f"{'k' * 200}{n}": x for n in range(20)}, "take .* bytes, more than 3,584"),
        (lambda x: [x[:, :1] for _ in range(256)], "256 tensors, more than 255: join some"),
    ],
)
def test_results_that_a_board_cannot_name_are_refused(what, message):
    with pytest.raises(ConfigError, match=message):
        capture(returns(what), np.ones((1, 12), np.float32), "net")


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        (lambda x: x.max(1), ("output[0] | amax(1)", "output[1] | argmax(1)")),
        (lambda x: x.min(1, keepdim=True)[1], ("output | argmin(1, True)",)),
        (lambda x: x.topk(2, largest=False)[0], ("output | topk_values(2, -1, False)",)),
        (lambda x: x.sort(1, True)[1], ("output | sort_indices(1, True)",)),
        (lambda x: x.argsort(1), ("output | argsort(1)",)),
        (lambda x: x.log_softmax(1)[:, 2], ("output | log_softmax(1) | select(1, 2)",)),
        (lambda x: x.argmax(1, True).squeeze(1), ("output | argmax(1, True) | squeeze(1)",)),
        (lambda x: x.norm(dim=1), ("output | vector_norm(2, 1, False)",)),
        (functional.normalize, ("output | normalize(2.0, 1, 1e-12)",)),
        (lambda x: x / x.norm(p=1, dim=1, keepdim=True), ("output | normalize(1, 1, 0.0)",)),
        (lambda x: (x.sigmoid() > 0.5).float(), ("output | gt(0.5) | to(torch.float32)",)),
    ],
)
def test_what_is_left_to_the_host_is_in_names(what, steps):
    captured = capture(returns(what), np.ones((1, 12), np.float32), "net")
    assert captured.output_names == steps
    assert captured.on_host == ()


def _lists(value):
    if isinstance(value, dict):
        return {key: _lists(part) for key, part in value.items()}
    return tuple(map(_lists, value)) if isinstance(value, tuple) else value.tolist()
