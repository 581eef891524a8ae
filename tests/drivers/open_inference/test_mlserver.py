"""MLServer, in its own process and environment, is a device like our own server.

``make interop`` installs it. Its HTTP refuses binary tensors: there ``binary`` is off.
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from asyncinfer import Dispatcher
from asyncinfer.errors import AsyncInferError, ConfigError, InputError
from asyncinfer.testing import check_driver
from asyncinfer_drivers.open_inference import OpenInferenceDriver

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
HOME = Path(os.environ.get("ASYNCINFER_INTEROP") or CACHE / "asyncinfer" / "interop")
MLSERVER = HOME / "mlserver" / "bin" / "mlserver"

pytestmark = pytest.mark.skipif(not MLSERVER.exists(), reason="no MLServer: make interop")

ROWS = [np.full(4, n, np.float32) for n in range(6)]

RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse


class Twice(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        if (x < -100).any():
            raise InferenceError("numbers below -100")
        if (x > 100).any():
            raise RuntimeError("numbers above 100")
        outputs = [NumpyCodec.encode_output("y", (x * 2).astype(np.float32))]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""
TENSOR = {"datatype": "FP32", "shape": [-1, 4]}
MODEL = {
    "name": "twice",
    "implementation": "twice.Twice",
    "inputs": [{"name": "x", **TENSOR}],
    "outputs": [{"name": "y", **TENSOR}],
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Where MLServer listens, for each protocol."""
    folder = tmp_path_factory.mktemp("mlserver")
    ports = [free_port() for _ in range(3)]
    kinds = ("http_port", "grpc_port", "metrics_port")
    settings = {"host": "127.0.0.1", "parallel_workers": 0, **dict(zip(kinds, ports, strict=True))}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(MODEL))
    (folder / "twice.py").write_text(RUNTIME)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([MLSERVER, "start", folder], cwd=folder, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not is_ready(ports[0]):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield {"http": f"127.0.0.1:{ports[0]}", "grpc": f"127.0.0.1:{ports[1]}"}
    process.terminate()
    process.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def is_ready(port):
    try:
        url = f"http://127.0.0.1:{port}/v2/models/twice/ready"
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


@pytest.fixture
def driver_for(urls, protocol):
    def make(model="twice", **options):
        url, binary = urls[protocol], protocol == "grpc"
        return OpenInferenceDriver(url, model, protocol=protocol, binary=binary, **options)

    return make


async def test_mlserver_conforms(driver_for):
    report = await check_driver(
        lambda: driver_for(max_batch=4, concurrency=2),
        ROWS,
        expected=lambda x: x * 2,
        bad_inputs=[np.zeros(5), "text", np.full(4, -200.0)],
        cannot_open=lambda: driver_for(inputs=[{"name": "x", "datatype": "INT8"}]),
        observed=lambda call: driver_for(preprocess=lambda x: (call(), x)[1]),
    )
    assert {*report.skipped.values()} == {"needs unplug="}


async def test_in_a_stream(driver_for):
    async with Dispatcher([driver_for(max_batch=8, concurrency=2)]) as dispatcher:
        outputs = [int(y[0]) async for y in dispatcher.stream(ROWS * 20)]
    assert outputs == [0, 2, 4, 6, 8, 10] * 20


async def test_its_words_are_in_the_error(driver_for):
    driver = driver_for()
    await driver.open()
    try:
        for number, words in ((-200.0, "numbers below -100"), (200.0, "numbers above 100")):
            (error,) = await driver.infer([np.full(4, number)])
            assert isinstance(error, AsyncInferError)
            assert str(error).endswith(words)
    finally:
        await driver.close()
    driver = driver_for("thrice")
    with pytest.raises(ConfigError, match="thrice"):
        await driver.open()
    await driver.close()


async def test_its_http_knows_no_binary_tensors(urls):
    driver = OpenInferenceDriver(urls["http"], "twice", protocol="http")
    await driver.open()
    try:
        (error,) = await driver.infer([ROWS[0]])
        assert isinstance(error, InputError)
        assert "the server refused the input" in str(error)
    finally:
        await driver.close()
