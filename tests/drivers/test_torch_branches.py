"""Models whose Python code goes another way for another input: each form follows, or is refused."""

import asyncio
import ctypes
import gc
import pickle
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.dlpack import to_dlpack

from asyncinfer_drivers._torch import aot
from asyncinfer_drivers._torch.compare import difference
from asyncinfer_drivers._torch.optimize import Choice, Search, plans_of
from asyncinfer_drivers._torch.threads import bind
from asyncinfer_drivers.torch_host import TorchDriver

PLANS = ["fuse", "channels_last", "freeze", "freeze+onednn", "fuse+channels_last+freeze"]

#: all within -1 and 1
PICTURE = torch.linspace(-1, 1, 64).view(1, 8, 8)
#: which way each goes: the warm-up's, the other one
INPUTS = [PICTURE, PICTURE * 20, PICTURE.flip(2) * 0.5, PICTURE * 30 + 5]


def in_thread(function, *args):
    with ThreadPoolExecutor(1, initializer=bind, initargs=(1,)) as thread:
        return thread.submit(function, *args).result()


def found(module, optimize, item=PICTURE) -> Choice:
    search = Search("dev", module, item, 1, 0.2, aot.Cache.of_user(1, 1))
    return in_thread(search.run, plans_of(optimize))


def answers(forward, *items):
    with torch.inference_mode():
        return [forward(item[None]) for item in items]


class Branching(nn.Module):
    """A small net that gives something else where ``wide`` says so of its input."""

    def __init__(self, wide):
        super().__init__()
        torch.manual_seed(42)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.wide = wide
        self.eval()

    def forward(self, x):
        y = self.net(x)
        return y.mean((2, 3)) * 3 + 1 if self.wide(x) else y.amax((2, 3))


def at_address(x):
    x = x.contiguous()
    return max(abs(v) for v in (ctypes.c_float * x.numel()).from_address(x.data_ptr())) > 10


def silenced(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(value)


def few(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return len((x.abs() > 10).nonzero()) > 0


def no_root(x, unused=True):
    """Whether a matrix that is positive definite for small inputs only has no such root."""
    try:
        root = torch.linalg.cholesky(torch.eye(2) * (10 - x.abs().max()))
    except RuntimeError:
        return True
    return not unused and root is None


def no_row(x):
    try:
        torch.arange(11)[x.abs().amax().long()]
    except IndexError:
        return True
    return False


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.tensor(float(np.abs(x.numpy()).max() > 10))

    @staticmethod
    def backward(ctx, grad):
        return grad


def unpickled(x):
    return pickle.loads(pickle.dumps(x))  # noqa: S301  # our own


def told(x):
    told = []
    x.clone().apply_(lambda value: told.append(abs(value) > 10) or value)
    return any(told)


def in_storage(x):
    highest = bytes(x.contiguous().untyped_storage())[3::4]  # sign and exponent, little-endian
    return max(byte & 0x7F for byte in highest) > 0x40


WIDE = {
    "equal": lambda x: not torch.equal(x, x.clamp(-10, 10)),
    "allclose": lambda x: not torch.allclose(x, x.clamp(-10, 10)),
    "bool": lambda x: (x.abs() > 10).any(),
    "silenced": lambda x: silenced((x.abs() > 10).any()),
    "is_nonzero": lambda x: (x.abs() > 10).any().is_nonzero(),
    "torch.is_nonzero": lambda x: torch.is_nonzero((x.abs() > 10).any()),
    "item": lambda x: x.abs().max().item() > 10,
    "float": lambda x: float(x.abs().max()) > 10,
    "index": lambda x: [False, True][(x.abs() > 10).any().long()],
    "range": lambda x: list(range((x.abs() > 10).sum())) != [],
    "tolist": lambda x: max(map(abs, x.flatten().tolist())) > 10,
    "builtin max": lambda x: max(x.abs().flatten()) > 10,
    "in": lambda x: True in (x.abs() > 10),
    "format": lambda x: f"{x.abs().max():.3f}" > "10",
    "repr": lambda x: "True" in repr((x.abs() > 10).any()),
    "numpy": lambda x: np.abs(x.numpy()).max() > 10,
    "asarray": lambda x: np.abs(np.asarray(x)).max() > 10,
    "from_dlpack": lambda x: np.abs(np.from_dlpack(x)).max() > 10,
    "to_dlpack": lambda x: silenced((torch.from_dlpack(to_dlpack(x)).abs() > 10).any()),
    "storage": in_storage,
    "address": at_address,
    "data": lambda x: silenced((x.data.abs() > 10).any()),
    "detach": lambda x: x.detach().abs().max().item() > 10,
    "pickle": lambda x: unpickled(x).abs().max() > 10,
    "cholesky": lambda x: no_root(x, unused=False),
    "cholesky, unused": no_root,
    "no such row": no_row,
    "nonzero": few,
    "masked_select": lambda x: silenced(x[x.abs() > 10].numel()),
    "unique": lambda x: silenced((x.abs() > 10).unique().numel() == 2),
    "autograd": lambda x: silenced(ByNumpy.apply(x)),
    "apply_": told,
    "random": lambda x: random.Random(int(x.abs().max()) > 10).random() < 0.5,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*Converting a tensor|.*TypedStorage:")
@pytest.mark.parametrize("wide", WIDE.values(), ids=WIDE)
def test_no_form_goes_one_way_only(wide):
    model = Branching(wide)
    wanted = answers(model, *INPUTS)
    for plan in PLANS:
        choice = found(model, plan)
        assert difference(wanted, answers(choice.forward, *INPUTS)) == "", plan
        if "freeze" in plan:
            assert choice.plan == ()
            assert "control flow" in str(choice.refused)


@pytest.mark.parametrize("wide", WIDE.values(), ids=WIDE)
def test_a_driver_with_defaults_gives_the_models_answers(wide):
    model = Branching(wide)

    async def by_driver():
        driver = TorchDriver(model, warmup_input=PICTURE, optimize_seconds=0.1)
        await driver.open()
        try:
            return [(await driver.infer([item]))[0] for item in (*INPUTS, *INPUTS)]
        finally:
            await driver.close()

    wanted = [answer[0] for answer in answers(model, *INPUTS, *INPUTS)]
    assert difference(wanted, in_thread(asyncio.run, by_driver())) == ""


class Sometimes(nn.Module):
    """Leaves its normalisation out for some inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(42)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_var.fill_(4.0)
        self.eval()

    def forward(self, x):
        y = self.conv(x)
        return y if (x.abs() > 10).any() else self.norm(y)


def test_what_is_left_out_at_times_is_not_folded():
    model = Sometimes()
    choice = found(model, "fuse")
    assert difference(answers(model, *INPUTS), answers(choice.forward, *INPUTS)) == ""
    assert "control flow" in choice.refused["fuse",]


@pytest.mark.parametrize(
    "many",
    [
        lambda x: silenced(x.shape[0] > 4),
        lambda x: silenced(x.size(0) % 5 == 0),
        lambda x: silenced(torch.as_tensor(x.shape[0]) + 1 > 5),
        lambda x: silenced(x.numel() > 256),
        lambda x: x.shape[0] > 4,
    ],
    ids=["shape", "size", "tensor", "numel", "told"],
)
def test_a_way_that_depends_on_the_size_of_the_batch(many):
    model = Branching(many)
    for plan in PLANS:
        choice = found(model, plan)
        for size in (1, 2, 5, 9):
            batch = torch.stack([PICTURE * n for n in range(1, size + 1)])
            with torch.inference_mode():
                assert difference(model(batch), choice.forward(batch)) == "", plan


class Within(nn.Module):
    """Fails or goes on, by values, without looking at any."""

    def forward(self, x):
        limit = x.abs().clamp(max=10)
        return torch.where(x.abs() > 10, limit * 2, x) + x.new_tensor([1.0])


def test_what_decides_by_itself_needs_no_python():
    choice = found(Within().eval(), "freeze")
    assert choice.plan == ("freeze",)
    assert difference(answers(Within(), *INPUTS), answers(choice.forward, *INPUTS)) == ""


def in_script(x: torch.Tensor) -> torch.Tensor:
    if bool((x.abs() > 10).any()):
        return x * 3 + 1
    return x


def as_script(thing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age
        return torch.jit.script(thing)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(42)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        if bool((x.abs() > 10).any()):
            return y.mean((2, 3)) * 3 + 1
        return y.amax((2, 3))


def test_a_script_keeps_its_branches_in_a_graph():
    model = as_script(Scripted().eval())
    for plan in PLANS:
        choice = found(model, plan)
        assert difference(answers(model, *INPUTS), answers(choice.forward, *INPUTS)) == ""
        assert str(choice) == ("none" if "fuse" in plan else plan)


def test_a_script_within_a_model_keeps_its_branches():
    model = Calls(as_script(in_script))
    for plan in PLANS:
        choice = found(model, plan)
        assert difference(answers(model, *INPUTS), answers(choice.forward, *INPUTS)) == ""


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(42)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.function = function
        self.eval()

    def forward(self, x):
        return self.net(self.function(x))


PLAIN = {
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(5, 8)),
    "embedding": (nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)), torch.tensor([8, 1, 3, 1])),
    "dropout": (nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.RReLU()), torch.randn(4)),
    "double": (nn.Linear(4, 2).double(), torch.randn(4, dtype=torch.float64)),
    "mask": (Calls(lambda x: x.masked_fill(x > 0.5, 0.25)), PICTURE),
    "where": (Calls(lambda x: torch.where(x > 0, x, x.new_zeros(()))), PICTURE),
    "fft": (Calls(lambda x: torch.fft.rfft(x).abs()), PICTURE),
    "interpolate": (Calls(lambda x: nn.functional.interpolate(x, scale_factor=2.0)), PICTURE),
    "sort": (Calls(lambda x: x.sort(-1).values + x.cumsum(-1)), PICTURE),
    "einsum": (Calls(lambda x: torch.einsum("bchw,bcvw->bchv", x, x)), PICTURE),
}


@pytest.mark.parametrize(("model", "item"), PLAIN.values(), ids=PLAIN)
def test_a_model_that_goes_one_way_becomes_a_graph(model, item):
    choice = found(model.eval(), "freeze", item)
    assert not choice.refused
    assert choice.plan == ("freeze",)


# --- inference mode -----------------------------------------------------------------------------


def made_in_inference_mode(train=False):
    with torch.inference_mode():
        return Calls(lambda x: x).train(train)


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("factory", [False, True])
async def test_a_model_made_in_inference_mode_opens_and_runs(factory, train):
    given = (lambda: made_in_inference_mode(train)) if factory else made_in_inference_mode(train)
    with torch.inference_mode():
        wanted = list(made_in_inference_mode()(torch.stack(INPUTS[1:3])))
    for plan in ("auto", "none", *PLANS):
        driver = TorchDriver(
            given, warmup_input=PICTURE, optimize=plan, optimize_seconds=0.1, max_batch=2
        )
        await driver.open()
        got = await driver.infer(INPUTS[1:3])
        await driver.close()
        assert difference(wanted, got) == ""
        assert plan in ("auto", driver.details["optimize"])


# --- what is left -------------------------------------------------------------------------------

#: opens and closes a model of 10 MB, and prints the process's memory in MB after each round
ROUNDS = """
import asyncio, torch
from torch import nn
from asyncinfer_drivers.torch_host import TorchDriver

layers = [part for _ in range(4) for part in (nn.Conv2d(256, 256, 3), nn.BatchNorm2d(256))]
net, item = nn.Sequential(*layers, nn.Flatten()).eval(), torch.randn(256, 9, 9)

async def main():
    for _ in range(6):
        for optimize in ("freeze", "freeze+onednn"):
            options = {"optimize": optimize, "optimize_seconds": 0.1, "max_batch": 1}
            driver = TorchDriver(net, warmup_input=item, **options)
            await driver.open()
            assert driver.details["optimize"] == optimize, driver.details
            await driver.close()
        with open("/proc/self/statm") as file:
            print(int(file.read().split()[1]) * 4096 / 1e6)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_form_goes_with_its_driver():
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True
    )
    sizes = [float(line) for line in done.stdout.split()]
    assert len(sizes) == 6
    assert sizes[-1] - sizes[1] < 40, sizes  # each round kept 20 MB and more


def test_what_was_tried_is_freed():
    model = Calls(lambda x: x)
    in_thread(found, model, "freeze")
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is torch.jit.RecursiveScriptModule]
