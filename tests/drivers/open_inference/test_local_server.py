"""``asyncinfer serve`` as a device: a shared one, and one of the driver's own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError, DeviceError, DeviceLost
from asyncinfer.testing import check_driver
from asyncinfer_drivers.models import digits
from asyncinfer_drivers.open_inference import OpenInferenceDriver
from asyncinfer_drivers.open_inference.local import LocalServerDriver

PICTURES = [np.zeros((8, 8)), digits.example(), *(np.eye(8) * n for n in (4, 16))]
STEPS = {"preprocess": digits.preprocess, "postprocess": digits.postprocess}
BATCH_STEPS = {**STEPS, "collate": digits.collate, "uncollate": digits.uncollate}


@pytest.fixture(scope="module")
def right():
    """The digit of each picture, by the model itself."""
    model = digits.build()
    with torch.inference_mode():
        found = [
            digits.postprocess(model(digits.preprocess(picture)[None])[0]) for picture in PICTURES
        ]
    return lambda picture: next(
        digit for known, digit in zip(PICTURES, found, strict=True) if known is picture
    )


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Where our own server listens, for each protocol."""
    ports = tmp_path_factory.mktemp("serve") / "ports.json"
    command = [sys.executable, "-m", "asyncinfer", "serve", "--model", "digits", "--devices", "cpu"]
    command += ["--http-port", "0", "--grpc-port", "0", "--ports-file", ports]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not ports.exists():
        assert process.poll() is None
        time.sleep(0.02)
    found = json.loads(ports.read_text())
    yield {name: f"127.0.0.1:{found[f'{name}_port']}" for name in ("grpc", "http")}
    process.kill()
    process.wait()


@pytest.mark.parametrize("options", [STEPS, {**BATCH_STEPS, "max_batch": 3, "concurrency": 2}])
async def test_our_own_server_conforms(urls, protocol, right, options):
    def driver(**more):
        return OpenInferenceDriver(urls[protocol], "digits", protocol=protocol, **options | more)

    report = await check_driver(
        lambda: driver(warmup_input=digits.example()),
        PICTURES,
        expected=right,
        bad_inputs=[torch.zeros(3, 3), "seven", None],
        cannot_open=lambda: driver(inputs=[{"name": "input", "shape": [-1, 3, 224, 224]}]),
        observed=lambda call: driver(
            preprocess=lambda x: (call(), digits.preprocess(x))[1], collate=None
        ),
    )
    assert {*report.skipped.values()} == {"needs unplug="}


async def test_what_our_own_server_refuses(urls, protocol):
    driver = OpenInferenceDriver(urls[protocol], "letters", protocol=protocol)
    with pytest.raises(ConfigError, match=r"letters.*check url and model"):
        await driver.open()
    await driver.close()


def alive(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def is_there(folder):
    return Path(folder).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_of_its_own_from_open_to_close(protocol, right):
    async def stream():
        driver = LocalServerDriver("digits", protocol=protocol, max_batch=8, **BATCH_STEPS)
        with pytest.raises(DeviceError, match="not open"):
            await driver.infer(PICTURES)
        outputs, pids = [], []
        pictures = PICTURES * 300
        async with Dispatcher([driver], retries=100) as dispatcher:
            pids.append(driver.server["pid"])
            async for output in dispatcher.stream(pictures):
                outputs.append(output)
                if len(outputs) == 200:
                    os.kill(pids[0], signal.SIGKILL)
            pids.append(driver.server["pid"])
            assert dispatcher.stats().devices[0].errors >= 1
        assert outputs == [right(picture) for picture in pictures]
        assert pids[0] != pids[1]
        assert not driver.server
        assert not any(map(alive, pids))

    asyncio.run(stream())


@pytest.mark.slow
def test_it_dies_with_its_program(tmp_path):
    program = """
import asyncio, os
from asyncinfer_drivers.open_inference.local import LocalServerDriver

async def main():
    driver = LocalServerDriver("digits")
    await driver.open()
    print(driver.server["pid"], flush=True)
    os._exit(7)

asyncio.run(main())
"""
    env = os.environ | {"TMPDIR": str(tmp_path)}  # which nobody is left to tidy up
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, env=env)
    assert ran.returncode == 7
    deadline = time.monotonic() + 5
    while alive(int(ran.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "net.pt2"}, "the input of 'net.pt2' is not known: give input_shape"),
        ({"slowdown": 0.5}, "slowdown must be a number of at least 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        LocalServerDriver(**{"model": "digits", **options})


async def test_a_server_that_cannot_start(tmp_path):
    driver = LocalServerDriver(str(tmp_path / "net.pt2"), name="pi", input_shape=[3, 4])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^pi: .*no such model file"):
            await driver.open()
        await driver.close()


async def test_a_server_that_takes_too_long():
    driver = LocalServerDriver("digits", name="pi", start_timeout=0.01)
    with pytest.raises(DeviceError, match="its server is not ready"):
        await driver.open()
    assert driver._process is None


async def test_closing_while_it_starts():
    driver = LocalServerDriver("digits")
    opening = asyncio.create_task(driver.open())
    while driver._process is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    folder = driver._folder.name
    await driver.close()
    with pytest.raises(DeviceLost, match="closed while it was opening"):
        await opening
    assert not is_there(folder)
