"""Servers of the Open Inference Protocol, and drivers for them."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from asyncinfer_drivers.open_inference import OpenInferenceDriver

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # for oip_server

from oip_server import Server  # noqa: E402


class Apart:
    """The same server in a process of its own."""

    def __init__(self, protocol):
        self.protocol = protocol
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"127.0.0.1:{free.getsockname()[1]}"
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [sys.executable, FOLDER / "oip_server.py", self.protocol, self.url.partition(":")[2]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ready()

    def _ready(self):
        assert self._process.stdout.readline() == b"ready\n"

    async def restart(self):
        """All connections are cut."""
        self._process.stdin.write(b"again\n")
        self._process.stdin.flush()
        await asyncio.to_thread(self._ready)

    def close(self):
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest_asyncio.fixture
async def server(protocol):
    """A running server."""
    server = Server(protocol)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def apart(protocol):
    """A running server in a process of its own."""
    server = Apart(protocol)
    yield server
    server.close()


@pytest.fixture
def driver_for():
    """Makes a driver for a server."""

    def make(server, **options):
        options = {"connect_timeout": 10.0, "protocol": server.protocol, **options}
        return OpenInferenceDriver(options.pop("url", server.url), "twice", **options)

    return make


@pytest.fixture
def opened(driver_for):
    """Opens a driver for the time of a block."""

    @contextlib.asynccontextmanager
    async def opened(server, **options):
        driver = driver_for(server, **options)
        try:
            await driver.open()
            yield driver
        finally:
            await driver.close()

    return opened
