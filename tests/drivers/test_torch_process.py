"""A driver with a process of its own: the same outputs, and nothing left however it ends."""

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout, InputError
from asyncinfer.testing import check_driver
from asyncinfer_drivers._shared.worker import portable
from asyncinfer_drivers._torch.process import ProcessHost
from asyncinfer_drivers._torch.wire import Area, Pickled, load, packed
from asyncinfer_drivers.models import digits
from asyncinfer_drivers.torch_host import TorchDriver

PICTURES = list(digits.inputs().items[:7])

#: what the drivers' processes import
MODULE = """
import ctypes, os, time
import torch
from torch import nn

class Odd(nn.Module):
    def forward(self, x):
        what = int(x.flatten()[0])
        if what == 1:
            os._exit(7)
        if what == 2:
            ctypes.string_at(0)
        if what == 3:
            time.sleep(60)
        if what == 4:
            raise Picky("four", 4)
        print("printed")
        return {"pid": torch.full((len(x),), os.getpid()), "x": x * 2}

class Picky(ValueError):
    def __init__(self, text, number):
        super().__init__(text)

MADE = set()

class Noted(nn.Module):  # in the process that makes it, as some of transformers' models are
    def __init__(self):
        super().__init__()
        MADE.add("extra")

    def forward(self, x):
        return {"out": x, "extra": x + 1} if MADE else {"out": x}

def build():
    return Odd().eval()

def no_pickle(row):
    return lambda: row
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd_model.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield "odd_model:build"
    sys.path.remove(str(folder))


def driver(model, **options) -> TorchDriver:
    options = {"threads": 1, "isolation": "process", **options}
    return TorchDriver(model, name="child", **options)


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def segments() -> set[str]:
    """Shared memory that this process has open."""
    opened = (os.path.realpath(file) for file in Path("/proc/self/fd").glob("*"))
    return {file for file in opened if file.startswith(("/memfd:", "/dev/shm"))}  # noqa: S108


# --- a driver like any other --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(400)  # it starts some thirty processes
def test_it_conforms():
    model, before = digits.build(), segments()

    def expected(picture):
        with torch.inference_mode():
            return digits.postprocess(model(digits.preprocess(picture).unsqueeze(0))[0])

    async def kill(driver):
        os.kill(driver._session.pid, signal.SIGKILL)

    async def check():
        return await check_driver(
            lambda: driver("digits", max_batch=2, concurrency=2, optimize="none"),
            PICTURES,
            expected=expected,
            bad_inputs=[torch.zeros(3, 3), "seven", None, lambda: 1],
            cannot_open=lambda: driver("/no/such/model.pt2"),
            unplug=kill,
            max_block=0.3,
        )

    report = asyncio.run(check())
    assert {*report.skipped.values()} == {"needs observed="}
    assert segments() == before


def test_outputs_faults_crashes_and_reopening(module, caplog):
    """One test, as starting a process takes a second or two."""

    async def run():
        child = driver(module, max_batch=4, close_timeout=5)
        await child.open()
        pid = child._session.pid
        assert child.details["isolation"] == "process"
        good, other = await child.infer([torch.zeros(2), torch.full((2,), 5.0)])
        assert int(good["pid"]) == int(other["pid"]) == pid != os.getpid()
        assert other["x"].tolist() == [10, 10]
        other["x"] += 1  # its own memory
        (large,) = await child.infer([np.zeros(300_000)])  # more than the memory began with
        assert large["x"].shape == (300_000,)
        bad, unsent, right = await child.infer([torch.full((2,), 4.0), lambda: 1, torch.zeros(2)])
        assert isinstance(bad, RuntimeError)  # a Picky cannot be unpickled
        assert "Picky: four" in str(bad)
        assert isinstance(unsent, InputError)
        assert right["x"].tolist() == [0, 0]
        assert "a batch of 2 failed" in caplog.text  # its log is ours
        await child.probe()
        for fault, said in ((1, "exit status 7"), (2, "SIGSEGV")):
            with pytest.raises(DeviceLost, match=f"'child': its process .*{said}"):
                await child.infer([torch.full((2,), float(fault))])
            with pytest.raises(DeviceLost, match=said):
                await child.infer([torch.zeros(2)])
            await child.close()
            assert not running(pid)
            await child.open()
            pid = child._session.pid
        await stuck(child, pid)

    async def stuck(child, pid):
        child._close_timeout = 0.05
        call = asyncio.create_task(child.infer([torch.full((2,), 3.0)]))
        await asyncio.sleep(0.1)
        await child.close()
        assert not running(pid)
        with pytest.raises((DeviceTimeout, DeviceLost)):
            await call

    asyncio.run(run())


def test_what_is_lost_is_noticed_on_the_first_real_input(module):
    """Without a warm-up input, and before the first answer."""

    async def run():
        noted = importlib.import_module("odd_model").Noted().eval()
        child = driver(noted, max_batch=4)
        await child.open()
        (refused,) = await child.infer(["no tensor"])
        assert isinstance(refused, InputError)
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"answers otherwise in its process.*a function"):
                await child.infer([torch.ones(3)] * 4)
        await child.close()
        async with Dispatcher([child, TorchDriver("odd_model:Noted")]) as d:
            assert sorted(await d.infer(torch.ones(3))) == ["extra", "out"]

    asyncio.run(run())


def test_a_module_that_is_the_same_there_is_compared_once(monkeypatch):
    compared = []
    prove = ProcessHost._prove

    def noting(host, item, theirs):
        compared.append(item)
        prove(host, item, theirs)

    monkeypatch.setattr(ProcessHost, "_prove", noting)

    async def run():
        linear = nn.Linear(3, 2).eval()
        wanted = (linear.weight.sum(1) + linear.bias).detach()
        child = driver(linear, max_batch=4)
        await child.open()
        assert compared == []
        item = torch.ones(3)
        for batch in ([item], [item] * 4, [item]):
            for row in await child.infer(batch):
                assert torch.allclose(row, wanted, atol=1e-6)
            assert len(compared) == 1
        await child.close()

    asyncio.run(run())


def test_what_is_lost_when_a_module_is_pickled_is_noticed(module):
    async def run():
        noted = importlib.import_module("odd_model").Noted().eval()
        with pytest.raises(ConfigError, match=r"answers otherwise in its process.*a function"):
            await driver(noted, warmup_input=torch.ones(3)).open()
        made = driver("odd_model:Noted", warmup_input=torch.ones(3))
        await made.open()
        (answer,) = await made.infer([torch.ones(3)])
        assert sorted(answer) == ["extra", "out"]
        await made.close()

    asyncio.run(run())


def test_cancelling_open_ends_the_process(module):
    async def run():
        child = driver(module)
        opening = asyncio.create_task(child.open())
        session = None
        while session is None or session.pid is None:
            await asyncio.sleep(0.001)
            session = child._session
        pid = session.pid
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not running(pid)

    asyncio.run(run())


def test_a_dispatcher_opens_a_killed_process_again():
    async def run():
        child = driver("digits", max_batch=4, optimize="none")
        items = PICTURES * 20
        async with Dispatcher([child], retries=3) as dispatcher:
            labels = []
            async for label in dispatcher.stream(items):
                labels.append(label)
                if len(labels) == 30:
                    os.kill(child._session.pid, signal.SIGKILL)
            assert labels == [*range(7)] * 20
            (stats,) = dispatcher.stats().devices
            assert stats.details["isolation"] == "process"

    asyncio.run(run())


PARENT = """
import asyncio, os, signal, sys
from asyncinfer_drivers.torch_host import TorchDriver
async def main():
    child = TorchDriver("odd_model:build", isolation="process", threads=1)
    await child.open()
    call = asyncio.create_task(child.infer([3.0]))
    await asyncio.sleep(0.1)
    print(child._session.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_dies_with_its_parent(module):
    folder = next(path for path in sys.path if Path(path, "odd_model.py").exists())
    done = subprocess.run(
        [sys.executable, "-c", PARENT],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while running(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running(int(done.stdout))


# --- what cannot be sent ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options"), [(lambda: 1, {}), ("digits", {"preprocess": lambda x: x})]
)
async def test_what_a_process_cannot_be_given(model, options):
    child = driver(model, **options)
    sent = r"child: isolation='process' cannot send its (model|preprocess) to its process: "
    with pytest.raises(ConfigError, match=sent + ".*module:function"):
        await child.open()


def test_an_output_that_cannot_be_sent(module):
    async def run():
        child = driver(nn.Identity().eval(), postprocess="odd_model:no_pickle", max_batch=2)
        await child.open()
        try:
            return await child.infer([1.0, 2.0])
        finally:
            await child.close()

    for output in asyncio.run(run()):
        assert "type function cannot leave its process" in str(output)


#: what else can fail on the way: values, and errors of a step
HOSTILE = """
import pickle

class Leaving:
    def __reduce__(self):
        raise KeyboardInterrupt("not so")

class Arriving:
    def __init__(self):
        self.x = 1

    def __setstate__(self, state):
        raise SystemExit(0)

class Apart:
    def __reduce_ex__(self, protocol):
        return bytes, (pickle.PickleBuffer(memoryview(b"abcdef")[::2]),)

class Silent(Exception):
    def __str__(self):
        raise SystemExit("no text")

def fail(row):
    raise Silent

def make(row):
    kinds = {1: Leaving, 2: Arriving, 3: Apart, 4: lambda: [Leaving()], 5: lambda: fail(row)}
    return kinds.get(int(row), lambda: float(row))()

def number(item):
    return item if isinstance(item, float) else 0.0
"""


def test_what_fails_on_the_way_fails_alone_and_the_process_lives(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(tmp_path)
    hostile = importlib.import_module("hostile")
    steps = {"preprocess": "hostile:number", "postprocess": "hostile:make"}
    child = driver(nn.Identity().eval(), max_batch=8, **steps)
    given = [7.0, hostile.Leaving(), hostile.Arriving(), hostile.Apart(), 8.0]

    async def run():
        await child.open()
        try:
            began = child._session.pid
            outputs = await child.infer(given)
            for number in (1.0, 2.0, 3.0, 4.0, 5.0):
                outputs += await child.infer([9.0, number])
            assert child._session.pid == began
            return outputs
        finally:
            await child.close()

    outputs = asyncio.run(run())
    good = [output for output in outputs if isinstance(output, float)]
    told = [str(output) for output in outputs if not isinstance(output, float)]
    assert good == [7.0, 8.0, *[9.0] * 5]
    assert [isinstance(output, InputError) for output in outputs[:5]] == [False, *[True] * 3, False]
    for text, named in zip(
        told,
        ("Leaving", "Arriving", "Apart", "Leaving", "Arriving", "Apart", "list", "Silent"),
        strict=True,
    ):
        assert named in text
    assert "KeyboardInterrupt was raised: not so" in told[6]


# --- the wire -----------------------------------------------------------------------------------


@pytest.fixture
def area():
    one = Area()
    other = Area(os.dup(one.fd))
    yield one, other
    one.close()
    other.close()
    other.close()


VALUES = [
    torch.randn(3, 4),
    torch.randn(4, 4).t(),
    torch.tensor(2.5, dtype=torch.bfloat16),
    torch.empty(0, 3),
    torch.tensor([True, False]),
    torch.arange(3).expand(2, 3),
    np.arange(6.0).reshape(2, 3)[:, ::2],
    np.array(["a", "b"]),
    [torch.ones(2), torch.zeros(2)],
    [torch.ones(2), torch.zeros(3)],
    [np.ones(2), np.zeros(2)],
    [np.ones(2), torch.zeros(2)],
    [np.array([object]), np.array([object])],
    [np.arange(3, dtype=">f4")] * 2,
    [np.array(3.0), np.array(4.0)],
    [np.float32(1.5), np.int64(3)],
    np.ma.array([1, 2], mask=[0, 1]),
    torch.randn(2, dtype=torch.complex64).conj(),
    torch.randn(2, dtype=torch.complex64).conj().imag,
    torch._neg_view(torch.randn(2)),
    torch.ones(3, requires_grad=True) * 2,
    torch.eye(3).to_sparse(),
    torch.nn.Parameter(torch.ones(2)),
    torch.randn(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    {"text": "x", "many": [1, 2, None]},
    [],
]


def same(one, other):
    if isinstance(one, torch.Tensor):
        if one.layout is torch.sparse_coo:
            return other.layout is one.layout and torch.equal(one.to_dense(), other.to_dense())
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_the_wire(area, value):
    ours, theirs = area
    for _ in range(2):
        sent = packed(value) if isinstance(value, list) else value
        text, sizes = Pickled.of((sent, torch.zeros(50_000))).into(ours)
        got, zeros = load(text, sizes, theirs)
        assert same(value, got)
        assert len(zeros) == 50_000
        assert len(text) < 1000


class Views(nn.Module):
    """Writes to a buffer, and answers with what another view of it holds then."""

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(6))
        self.last = self.memory[4:]

    def forward(self, x):
        self.memory[4:] = x.sum()
        return x + self.last


def quantised():
    quantization = torch.ao.quantization
    stubs = quantization.QuantStub(), quantization.DeQuantStub()
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    net = nn.Sequential(stubs[0], *layers, stubs[1]).eval()
    net.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(net, inplace=True)
    net(torch.randn(4, 1, 4, 4))
    return quantization.convert(net)


#: torch says of what it offers that it will not for ever
OLD = pytest.mark.filterwarnings("ignore:.*(TypedStorage|torch.ao|torch.jit|quantize|nested|range)")


@OLD
def test_odd_tensors_on_the_wire(area):
    ours, theirs = area
    whole = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.quint8)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)])
    sent = packed([whole, whole]), packed([nested, nested])
    (one, _), (_, two) = load(*Pickled.of(sent).into(ours), theirs)
    assert same(whole, one)
    assert same([*nested.unbind()], [*two.unbind()])


KINDS = (
    "quantised",
    "dynamic",
    "scripted",
    "traced",
    "script inside",
    "weight_norm",
    "spectral_norm",
    "channels_last",
    "tied",
    "views",
)


def modules():
    """A module of each kind, with a batch."""
    torch.manual_seed(42)
    row, parametrised = torch.randn(2, 8), nn.utils.parametrizations
    sequence = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    dynamic = torch.ao.quantization.quantize_dynamic(sequence.eval(), {nn.Linear})
    return {
        "quantised": (quantised(), torch.randn(2, 1, 4, 4)),
        "dynamic": (dynamic, row),
        "scripted": (torch.jit.script(nn.Linear(8, 2)), row),
        "traced": (torch.jit.trace(nn.Linear(8, 2), row), row),
        "script inside": (nn.Sequential(torch.jit.script(nn.Linear(8, 2)), nn.ReLU()), row),
        "weight_norm": (parametrised.weight_norm(nn.Linear(8, 2)), row),
        "spectral_norm": (parametrised.spectral_norm(nn.Linear(8, 2)), row),
        "channels_last": (nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last), None),
        "tied": (nn.ModuleList([sequence[0], sequence[0]]), None),
        "views": (Views(), row[:, :2]),
    }


@OLD
@pytest.mark.parametrize("name", KINDS)
def test_modules_on_the_wire(area, name):
    ours, theirs = area
    module, batch = modules()[name]
    arrived = load(*Pickled.of(module.eval(), views=True).into(ours), theirs)
    theirs.unmap()
    ours.empty()
    assert [p.stride() for p in module.parameters()] == [p.stride() for p in arrived.parameters()]
    assert len([*arrived.parameters()]) == len([*module.parameters()])
    if batch is not None:
        with torch.inference_mode():
            assert same(module(batch), arrived(batch))
            assert same(module(batch + 1), arrived(batch + 1))


@OLD
def test_quantised_and_scripted_modules_with_a_faster_form_wanted():
    class_, batch = quantised(), torch.randn(2, 1, 4, 4)
    module = nn.Sequential(class_, torch.jit.script(nn.ReLU())).eval()
    with torch.inference_mode():
        wanted = module(batch)

    async def run():
        child = driver(module, warmup_input=batch[0], max_batch=2, optimize_seconds=0.5)
        await child.open()
        try:
            return await child.infer([*batch])
        finally:
            await child.close()

    torch.testing.assert_close(torch.stack(asyncio.run(run())), wanted)


PROGRAM = """
import asyncio, dataclasses, torch
from torch import nn
from asyncinfer.errors import ConfigError
from asyncinfer_drivers.torch_host import TorchDriver

@dataclasses.dataclass
class Job:
    values: list

@dataclasses.dataclass
class Answer:
    total: float

def preprocess(job):
    return torch.tensor(job.values)

def postprocess(row):
    return Answer(float(row.sum()))

class Twice(nn.Module):
    def forward(self, x):
        return x * 2

async def main(**steps):
    driver = TorchDriver(Twice(), isolation="process", threads=1, max_batch=2, **steps)
    try:
        await driver.open()
        print(await driver.infer([Job([1.0, 2.0]), Job([3.0, 4.0])]))
    except ConfigError as error:
        print(error)
    finally:
        await driver.close()

"""


GUARDED = """
if __name__ == "__main__":
    run(preprocess=preprocess, postprocess=postprocess)
"""
ONLY_HERE = """
if __name__ == "__main__":
    class Only(Job):
        pass

    Job = Only
    run()
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (GUARDED, "[Answer(total=6.0), Answer(total=14.0)]"),
        ("run()", "while its process imports the main program: put what runs under if __name__"),
        (ONLY_HERE, "'Only' is defined in the main program, where the driver's process does not"),
    ],
    ids=["guarded", "bare", "only here"],
)
def test_what_the_main_program_defines(tmp_path, end, said):
    program = f"{PROGRAM}def run(**steps):\n    asyncio.run(main(**steps))\n{end}\n"
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert said in done.stdout + done.stderr  # what the process prints goes to the latter
    assert "Traceback" not in done.stderr


SMALL = """
import asyncio, resource, torch
from torch import nn
from asyncinfer.errors import DeviceLost
from asyncinfer_drivers.torch_host import TorchDriver

async def main():
    driver = TorchDriver(nn.Identity().eval(), isolation="process", threads=1)
    await driver.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    print(len((await driver.infer([torch.zeros(1000)]))[0]))
    try:
        await driver.infer([torch.zeros(1_000_000)])
    except DeviceLost as error:
        print(error)
    await driver.close()

asyncio.run(main())
"""


def test_too_little_memory_to_share():
    done = subprocess.run(
        [sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=60, check=False
    )
    assert "1000\n" in done.stdout
    assert "the system grants no 4 MiB of memory to share with the driver's process" in done.stdout


def test_what_arrives_is_kept_when_more_comes(area):
    ours, theirs = area
    first = load(*Pickled.of(torch.ones(4)).into(ours), theirs)
    load(*Pickled.of(torch.zeros(40_000)).into(ours), theirs)
    assert first.tolist() == [1] * 4


def test_errors_travel():
    lost = DeviceLost("dev", "gone")
    assert portable(lost) is lost
    error = ValueError("x")
    error.add_note("a note")
    assert portable(error) is error

    class Local(ValueError):
        pass

    local = Local("y")
    local.add_note("a note")
    told = portable(local)
    assert str(told) == "Local: y"
    assert told.__notes__ == ["a note"]
