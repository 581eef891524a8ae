"""Nets of all shapes: a board and PyTorch take the same inputs and give the same outputs.

The board is one in memory whose model is the compiler's integer reference, which real and emulated
boards equal bit for bit.
"""

import shutil
from collections import Counter

import numpy as np
import pytest

from asyncinfer import Dispatcher
from asyncinfer.errors import InputError, TaskError

pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from asyncinfer_drivers.cortex_m import CortexM4Driver  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.compile import capture, compile_model  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.reference import (  # noqa: E402
    IntegerReference,
    compile_reference,
)
from asyncinfer_drivers.cortex_m.peer import FirmwarePeer  # noqa: E402
from asyncinfer_drivers.cortex_m.specs import BoardSpec  # noqa: E402
from asyncinfer_drivers.cortex_m.tensors import InputCodec, OutputCodec  # noqa: E402
from asyncinfer_drivers.torch_host import TorchDriver  # noqa: E402

# torch.export of this release warns about its own internals
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="needs a compiler"),
]

COUNT = 12
#: decibels of signal to noise; numbers in another order have none
BAR = 30


class Mask(nn.Module):
    """Segmentation: strided, up again, and joined with the input."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(11, 4, 1)

    def forward(self, x):
        return self.last(torch.cat([self.up(torch.relu(self.down(x))), x], 1))


class Viewed(nn.Module):
    """A convolution whose output is seen in another shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.first = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.first(x).view(self.shape))


def convolved(before, after, axes, *rest):
    """A convolution that keeps the sizes; ``rest`` follows a ReLU."""
    kind, size, around = {
        "L": (nn.Conv1d, 3, 1),
        "W": (nn.Conv2d, (1, 3), (0, 1)),
        "HW": (nn.Conv2d, 3, 1),
    }[axes]
    return nn.Sequential(kind(before, after, size, padding=around), nn.ReLU(), *rest)


NETS = {
    "conv1d": (lambda: convolved(6, 8, "L", nn.Conv1d(8, 4, 3)), (6, 20)),
    "conv1d, square": (lambda: convolved(16, 16, "L", nn.Conv1d(16, 16, 1)), (16, 16)),
    "conv1d, flattened": (
        lambda: convolved(6, 8, "L", nn.MaxPool1d(2), nn.Flatten(), nn.Linear(80, 5)),
        (6, 20),
    ),
    "as many channels as rows": (lambda: convolved(8, 8, "HW", nn.Conv2d(8, 8, 1)), (8, 8, 8)),
    "three of each, flattened": (
        lambda: convolved(3, 8, "HW", nn.Flatten(), nn.Linear(72, 5)),
        (3, 3, 3),
    ),
    "1xN": (lambda: convolved(3, 5, "W", nn.Flatten(), nn.Linear(15, 5)), (3, 1, 3)),
    "1xN out": (lambda: convolved(3, 7, "W", nn.Conv2d(7, 7, 1)), (3, 1, 7)),
    "segmentation": (Mask, (3, 8, 8)),
    "autoencoder": (lambda: convolved(1, 4, "HW", nn.Conv2d(4, 1, 1)), (1, 8, 8)),
    "autoencoder, linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 48)),
        (3, 4, 4),
    ),
    "vector": (lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), (12,)),
    "one row of a sequence": (lambda: Viewed((1, 6, 1, 6)), (6, 6)),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Makes, once, a net of that name, inputs for it, and what a board with it is and computes."""
    built = {}

    def make(name, net=None, shape=None):
        if name not in built:
            torch.manual_seed(42)
            net, shape = (NETS[name][0](), NETS[name][1]) if net is None else (net, shape)
            inputs = np.random.default_rng(42).normal(size=(COUNT, *shape)).astype(np.float32)
            folder = tmp_path_factory.mktemp("net")
            graph = capture(net.eval(), inputs[:1], name)
            built[name] = net, inputs, *board(compile_model(graph, inputs, name, folder), folder)
        return built[name]

    return make


def board(compiled, folder):
    """What a board that runs ``compiled`` says of itself, and what it computes."""
    library = folder / "reference.so"
    compile_reference(compiled.portable, library)
    given, (made,) = compiled.input, compiled.outputs
    reference = IntegerReference(library, given, made, compiled.arena_bytes)
    limits = {"frames_in_flight": 4, "max_samples": 2, "receive_buffer": 2 * given.size + 64}
    spec = BoardSpec("stm32f405", "asyncinfer", "net", (given,), (made,), **limits)

    def compute(sample):
        return reference(np.frombuffer(sample, np.int8).reshape(1, *given.shape)).tobytes()

    return spec, compute


def snr(right, found):
    """Decibels; more than there are of equal ones."""
    noise = max(np.square(right - found).sum(), 1e-30)
    return 10 * np.log10(np.square(right).sum() / noise)


@pytest.mark.parametrize("name", NETS)
async def test_boards_and_pytorch_are_one_pool(build, name):
    net, inputs, spec, compute = build(name)
    tasks = [torch.from_numpy(sample) for sample in inputs] * 3
    with torch.inference_mode():
        right = [net(task[None])[0].numpy() for task in tasks]
    boards = [FirmwarePeer(spec, compute) for _ in range(2)]
    drivers = [CortexM4Driver(peer.connect, name=f"board {n}") for n, peer in enumerate(boards)]
    torch_driver = TorchDriver(net, name="torch", optimize="none", max_batch=2)
    # all take part, however fast they are
    async with Dispatcher([torch_driver, *drivers], policy="static", wait_for="all") as dispatcher:
        results = [result async for result in dispatcher.results(tasks)]
    assert set(Counter(result.device for result in results)) == {"torch", "board 0", "board 1"}
    assert {result.value.shape for result in results} == {right[0].shape}
    assert all(isinstance(result.value, torch.Tensor) for result in results)
    for device in ("torch", "board 0", "board 1"):
        mine = [result for result in results if result.device == device]
        found = np.stack([result.value.numpy() for result in mine])
        assert snr(np.stack([right[result.index] for result in mine]), found) > BAR


@pytest.mark.parametrize("name", ["conv1d", "segmentation", "1xN"])
async def test_pytorch_and_board_refuse_the_same(build, name):
    net, inputs, spec, compute = build(name)
    sample = inputs[0]
    wrong = [sample[None], np.moveaxis(sample, 0, -1), sample[:2], sample.ravel()]
    async with Dispatcher([TorchDriver(net, optimize="none")], retries=0) as dispatcher:
        for item in wrong:
            with pytest.raises(TaskError):
                await dispatcher.infer(item)
    async with Dispatcher([CortexM4Driver(FirmwarePeer(spec, compute).connect)]) as dispatcher:
        for item in wrong:
            with pytest.raises(TaskError) as caught:
                await dispatcher.infer(item)
            (cause,) = caught.value.causes  # no second attempt
            assert isinstance(cause, InputError)


async def test_a_tensor_in_channels_last_memory_is_the_same_tensor(build):
    _, inputs, spec, compute = build("segmentation")
    batch = torch.from_numpy(inputs[:2])
    lying = batch.contiguous(memory_format=torch.channels_last)
    driver = CortexM4Driver(FirmwarePeer(spec, compute).connect)
    await driver.open()
    try:
        pairs = zip(await driver.infer(list(batch)), await driver.infer(list(lying)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    finally:
        await driver.close()


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((6, 6), (1, 4, 1, 9)),
        ((6, 6), (1, 1, 6, 6)),
        ((6, 6), (1, 9, 4)),
        ((6, 6), (1, 36)),
    ],
)
def test_a_view_that_moves_numbers_is_pytorchs(build, shape, seen):
    net, inputs, spec, compute = build(f"view {seen}", Viewed(seen).eval(), shape)
    codecs = InputCodec(spec.inputs[0]), OutputCodec(spec.outputs[0])
    for sample in inputs:
        with torch.inference_mode():
            right = net(torch.from_numpy(sample[None])).numpy()[0]
        (found,) = codecs[1].decode(compute(codecs[0].encode(sample)), 1)
        assert found.shape == right.shape
        assert snr(right, found) > BAR
