"""A driver with a process of its own: the same outputs, and nothing left however it ends."""

import asyncio
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
from asyncinfer_drivers._torch.wire import Area, dump, load, packed
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
        env={**os.environ, "PYTHONPATH": folder},
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
    with pytest.raises(ConfigError, match=r"child: isolation='process' cannot send .*module:funct"):
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
    {"text": "x", "many": [1, 2, None]},
    [],
]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_the_wire(area, value):
    ours, theirs = area
    for _ in range(2):
        sent = packed(value) if isinstance(value, list) else value
        text, sizes = dump((sent, torch.zeros(50_000)), ours)
        got, zeros = load(text, sizes, theirs)
        assert same(value, got)
        assert len(zeros) == 50_000
        assert len(text) < 1000


def test_what_arrives_is_kept_when_more_comes(area):
    ours, theirs = area
    first = load(*dump(torch.ones(4), ours), theirs)
    load(*dump(torch.zeros(40_000), ours), theirs)
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
