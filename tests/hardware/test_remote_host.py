"""A host of its own as a Raspberry Pi would be one: an address, one core, 2 GB, a home network.

The host is a network namespace in which ``asyncinfer serve`` runs. The way to it is a proxy that
delays, paces, stalls and is cut, since the kernel may have no ``tc netem``. The memory limit is a
cgroup's where one can be made, else ``RLIMIT_DATA``.
"""

import asyncio
import json
import os
import random
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from asyncinfer import Dispatcher
from asyncinfer.config import DeviceConfig
from asyncinfer.model import resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_factories=["asyncio"]),
]

MEMORY = 2 << 30
TOKEN = "-".join(["0123456789abcdef"] * 2)
HOME, PI = "10.211.77.1", "10.211.77.2"
#: results that must come from the host once it is back
AFTER = 40
#: what the devices say that they share: each has to work, though the host is here in truth
NOTHING = ()


class HomeNetwork:
    """TCP to one address, as over Wi-Fi: seconds of delay each way, bytes a second, stalls."""

    def __init__(self, host, port, *, delay=0.004, rate=2_500_000, stalls=0.01, stall=0.2):
        self._to, self.delay, self._rate = (host, port), delay, rate
        self._stalls, self._stall = stalls, stall
        self._random = random.Random(42)
        self._tasks = set()
        self._server = None
        self.port, self.connections = 0, 0

    async def plug(self):
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self):
        """Nothing arrives any more, and nobody can connect until it is plugged in again."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _joined(self, reader, writer):
        self._tasks.add(task := asyncio.current_task())
        self.connections += 1
        far = None
        try:
            there, far = await asyncio.open_connection(*self._to)
            await asyncio.gather(self._carry(reader, far), self._carry(there, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the line is cut, or one end has hung up
        finally:
            self._tasks.discard(task)
            for end in filter(None, (writer, far)):
                end.transport.abort()

    async def _carry(self, reader, writer):
        while data := await reader.read(16384):
            late = self._stall if self._random.random() < self._stalls else 0.0
            await asyncio.sleep(self.delay + len(data) / self._rate + late)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)  # noqa: S607


@pytest.fixture(scope="module")
def namespace():
    """A network namespace at the end of a cable, or why there is none."""
    name = f"asyncinfer-{os.getpid()}"
    near, far = f"ai{os.getpid()}a"[-15:], f"ai{os.getpid()}b"[-15:]
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace (it takes root and iproute2): {type(error).__name__}")
    try:
        try:
            ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
            ip("addr", "add", f"{HOME}/24", "dev", near)
            ip("link", "set", near, "up")
            ip("-n", name, "addr", "add", f"{PI}/24", "dev", far)
            ip("-n", name, "link", "set", far, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no virtual cable between namespaces: {error.stderr.decode().strip()}")
        yield name
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", near)
        ip("netns", "del", name)


@contextmanager
def memory_limit():
    """What a shell does to be held to ``MEMORY``: a cgroup, else ``RLIMIT_DATA``."""
    group = Path("/sys/fs/cgroup/memory", f"asyncinfer-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY))
    except OSError:
        yield f"ulimit -d {MEMORY // 1024}", None
        return
    try:
        yield f"echo $$ > {group}/cgroup.procs", group
    finally:
        group.rmdir()


@pytest.fixture(scope="module")
def pi(namespace, tmp_path_factory):
    """The server there: its gRPC port and its memory's high mark, where that is known."""
    folder = tmp_path_factory.mktemp("pi")
    ports, token = folder / "ports.json", folder / "token"
    token.write_text(TOKEN)
    serve = [sys.executable, "-m", "asyncinfer", "serve", "--model", "digits", "--devices", "cpu"]
    serve += ["--host", PI, "--insecure", "--token-file", token, "--ports-file", ports]
    serve += ["--http-port", "0", "--grpc-port", "0"]
    with memory_limit() as (limit, group), (folder / "log").open("w") as log:
        command = f"{limit}; exec taskset -c 0 {shlex.join(map(str, serve))}"
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "sh", "-c", command],  # noqa: S607
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        try:
            deadline = time.monotonic() + 60
            while not ports.exists():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield json.loads(ports.read_text())["grpc_port"], token, process, group
        finally:
            process.terminate()
            process.wait(30)


def far_device(port, token, name="raspberry_pi"):
    options = {"url": f"127.0.0.1:{port}", "model": "digits", "token_file": str(token)}
    options |= {"max_batch": 16, "concurrency": 2, "connect_timeout": 2.0, "run_timeout": 5.0}
    options["shares"] = NOTHING
    return DeviceConfig("open_inference", name, options).build(resolve("digits"))


def local_device():
    options = {"device": "cpu", "threads": 1, "max_batch": 1, "slowdown": 20.0, "optimize": "none"}
    options["shares"] = NOTHING
    return DeviceConfig("torch", "desktop", options).build(resolve("digits"))


async def later(seconds, do):
    await asyncio.sleep(seconds)
    await do()


async def test_a_stream_over_a_home_network_that_is_cut(pi):
    port, token, process, group = pi
    assert os.sched_getaffinity(process.pid) == {0}
    home = HomeNetwork(PI, port)
    await home.plug()
    items = list(resolve("digits").builtin.inputs().items)
    far, local = far_device(home.port, token), local_device()
    enough = asyncio.Event()
    labels, back, before, lost = [], 0, 0, None
    plugging = None

    def inputs():
        for n in range(20_000):
            if enough.is_set():
                return
            yield items[n % len(items)]

    options = {"window": 256, "queue_size": 64, "retries": 5}
    async with Dispatcher([far, local], wait_for="all", **options) as dispatcher:
        async for result in dispatcher.results(inputs()):
            assert result.index == len(labels)
            labels.append(result.unwrap())
            if result.device == "raspberry_pi":
                back, before = (back + 1, before) if lost else (0, before + 1)
            if not lost and before >= 100:
                await home.cut()
                lost = home.connections
                plugging = asyncio.create_task(later(0.5, home.plug))
            if back >= AFTER and home.connections > lost:
                enough.set()
        await plugging
        errors = {one.name: one.errors for one in dispatcher.stats().devices}
    async with Dispatcher([local_device()]) as alone:
        expected = [label async for label in alone.stream(items[: len(labels)])]
    await home.cut()
    assert labels == [expected[n % len(items)] for n in range(len(labels))]
    assert back >= AFTER
    assert home.connections > lost
    assert errors["raspberry_pi"] > 0
    if group is not None:
        assert int((group / "memory.max_usage_in_bytes").read_text()) < MEMORY
