"""Servers that refuse, stall, lie, vanish and come back; and the way to them."""

import asyncio
import gc
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from oip_server import Fault

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import (
    AsyncInferError,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    InputError,
    TaskError,
)
from asyncinfer.testing import SimulatedDriver, run_virtual
from asyncinfer_drivers.open_inference.faults import Failure, Kind
from asyncinfer_drivers.open_inference.session import Limits, Session
from asyncinfer_drivers.open_inference.tensors import Message

ROW = np.arange(4, dtype=np.float32)
#: for what takes seconds
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])


class Proxy:
    """A line to a server: with a delay, and cut at will."""

    def __init__(self, url):
        self.host, _, self.port = url.partition(":")
        self.delay = 0.0
        self._lines = set()
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info):
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self):
        for writer in self._lines:
            writer.transport.abort()

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        there = await asyncio.open_connection(self.host, self.port)
        self._lines |= {writer, there[1]}
        await asyncio.gather(self._carry(reader, there[1]), self._carry(there[0], writer))

    async def _carry(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                await asyncio.sleep(self.delay)
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("input", InputError),
        ("timeout", DeviceTimeout),
        ("denied", DeviceError),
        ("unknown", DeviceError),
        ("failed", AsyncInferError),
    ],
)
async def test_a_refusal_carries_the_servers_text(server, opened, kind, error):
    async with opened(server, name="pi", max_batch=2) as driver:
        await driver.infer([ROW, ROW])
        server.faults = [(kind, "because\n of that")]
        with pytest.raises(error, match=r"device 'pi': the server .*: because of that$") as caught:
            await driver.infer([ROW, ROW])
        assert type(caught.value) is error
        assert len(await driver.infer([ROW, ROW])) == 2


async def test_a_refused_task_fails_alone(server, opened, driver_for):
    def picky(arrays):
        if (arrays["x"] < 0).any():
            raise Fault("input", "no negative numbers")
        return {"y": arrays["x"] * 2}

    server.run = picky
    rows = [ROW, -ROW, ROW + 1]
    async with Dispatcher([driver_for(server, max_batch=3)]) as dispatcher:
        results = [result async for result in dispatcher.results(rows)]
        stats = dispatcher.stats()
    assert [result.index for result in results] == [0, 1, 2]
    assert results[2].value.tolist() == [2, 4, 6, 8]
    assert isinstance(results[1].error, TaskError)
    assert "refused the input: no negative numbers" in str(results[1].error)
    assert (results[1].attempts, stats.devices[0].state) == (1, "ready")


async def test_an_overloaded_server_is_asked_again_and_not_given_up(server, driver_for):
    server.faults = [("busy", "too many")] * 4
    async with Dispatcher([driver_for(server)]) as dispatcher:
        outputs = [output.tolist() async for output in dispatcher.stream([ROW] * 3)]
        assert dispatcher.stats().devices[0].errors == 0
    assert outputs == [[0, 2, 4, 6]] * 3


async def test_a_server_that_is_unavailable_and_not_ready_is_lost(server, opened):
    async with opened(server, name="pi") as driver:
        server.always, server.ready = ("lost", "it goes down"), False
        with pytest.raises(DeviceLost, match="the server is unavailable: it goes down"):
            await driver.infer([ROW])


@pytest.mark.parametrize("word", ["busy", "lost"])
async def test_a_full_queue_loses_nothing(server, driver_for, word):
    """Triton 2.51: 503 or UNAVAILABLE, "Exceeds maximum queue size", while it is ready."""
    server.most_at_once, server.delay = 2, 0.005
    server.full = (word, "[request id: <id_unknown>] Exceeds maximum queue size")
    rows = [ROW + n for n in range(100)]
    async with Dispatcher([driver_for(server, concurrency=8)], retries=0) as dispatcher:
        outputs = [output async for output in dispatcher.stream(rows)]
        stats = dispatcher.stats().devices[0]
    assert np.array_equal(outputs, 2 * np.array(rows))
    assert (stats.errors, server.most) == (0, 2)
    assert server.refused < 100


async def test_a_server_overloaded_for_too_long(server, opened):
    server.always = ("busy", "too many")
    async with opened(server, queue_timeout=0.05) as driver:
        with pytest.raises(DeviceError, match=r"overloaded: too many \(for 0.05 s\)") as caught:
            await driver.infer([ROW])
        assert type(caught.value) is DeviceError
        call = asyncio.create_task(driver.infer([ROW]))
        await asyncio.sleep(0.01)
    with pytest.raises(DeviceError):
        await call


class Overloaded:
    """A transport that refuses until a time."""

    def __init__(self, until):
        self.until, self.asked = until, []

    async def infer(self, request, timeout):
        self.asked.append(asyncio.get_running_loop().time())
        if self.asked[-1] < self.until:
            raise Failure(Kind.BUSY, "too many")
        return Message(b"done")


@pytest.mark.parametrize(("until", "well"), [(0.5, True), (3.0, False)])
def test_pauses_grow_and_end_in_time(until, well):
    async def ask():
        session = Session("pi", Limits(connect_timeout=1.0, queue_timeout=2.0, run_timeout=None))
        session._transport = transport = Overloaded(until)
        try:
            return await session.reply(Message(b"")), transport.asked
        except DeviceError as error:
            return error, transport.asked
        finally:
            session._worker._stopping.set()
            session._worker._jobs.put(None)

    answer, asked = run_virtual(ask())
    assert isinstance(answer, Message) is well
    pauses = np.diff(asked)
    assert 0.0025 <= pauses[0] <= 0.005
    assert (pauses <= 0.25).all()
    assert pauses[-1] >= 0.125
    assert until <= asked[-1] < until + 0.25 if well else asked[-1] <= 2.0


async def test_a_slow_server_is_a_device_timeout(server, opened):
    server.delay = 30.0
    async with opened(server, run_timeout=0.05) as driver:
        with pytest.raises(DeviceTimeout, match="did not answer in time"):
            await driver.infer([ROW])
        await until(lambda: server.cancelled == 1)
        server.delay = 0.0
        assert len(await driver.infer([ROW])) == 1


async def test_cancelling_reaches_the_server(server, opened):
    server.delay = 30.0
    async with opened(server, concurrency=2) as driver:
        call = asyncio.create_task(driver.infer([ROW]))
        await until(lambda: server.running == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: server.cancelled == 1)
        assert server.answered == 0
        server.delay = 0.0
        assert len(await driver.infer([ROW])) == 1


async def test_closing_ends_what_is_under_way(server, opened):
    server.delay = 30.0
    async with opened(server) as driver:
        call = asyncio.create_task(driver.infer([ROW]))
        await until(lambda: server.running == 1)
        await driver.close()
        with pytest.raises(DeviceLost):
            await call
        await until(lambda: server.cancelled == 1)
        await driver.open()
        server.delay = 0.0
        assert len(await driver.infer([ROW])) == 1


async def test_an_error_that_is_kept_keeps_no_thread(apart, driver_for):
    gc.collect()  # servers of other tests
    driver = driver_for(apart)
    await driver.open()
    assert len(_pollers()) == (apart.protocol == "grpc")
    apart.close()
    with pytest.raises(DeviceLost) as kept:
        await driver.infer([ROW])
    await driver.close()
    await until(lambda: not _pollers())
    assert kept.value.device == driver.name


def _pollers():
    """gRPC's threads."""
    return [thread for thread in threading.enumerate() if "_poll_wrapper" in thread.name]


@ONE_LOOP
async def test_probe(server, opened):
    async with opened(server) as driver:
        await driver.probe()
        server.ready = False
        asking = asyncio.create_task(driver.probe())
        await asyncio.sleep(0.1)
        server.ready = True
        await asking
        server.ready = False
        with pytest.raises(DeviceError, match="not ready"):
            await driver.probe()
        await server.stop()
        with pytest.raises(DeviceLost):
            await driver.probe()


@ONE_LOOP
async def test_a_slow_server_that_says_it_is_not_ready_is_not_lost(server, driver_for):
    """So do servers whose only device is silent for a while."""
    async with Dispatcher([driver_for(server)]) as dispatcher:
        for _ in range(20):
            await dispatcher.infer(ROW)
        server.ready, server.delay = False, 1.0
        assert (await dispatcher.infer(ROW) == ROW * 2).all()
        assert dispatcher.stats().devices[0].errors == 0


async def test_a_model_that_is_not_ready_yet(server, driver_for):
    server.ready = False
    with pytest.raises(DeviceError, match="model 'twice' is not ready"):
        await driver_for(server).open()


async def test_a_host_that_does_not_answer(protocol, driver_for):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = SimpleNamespace(protocol=protocol, url=f"127.0.0.1:{silent.getsockname()[1]}")
        driver = driver_for(nobody, connect_timeout=0.1)
        with pytest.raises(DeviceTimeout):
            await driver.open()


async def test_a_line_that_is_slow_and_cut(server, driver_for):
    """The driver is opened again, nothing is lost, nothing comes twice."""
    async with Proxy(server.url) as line:
        line.delay = 0.002
        driver = driver_for(server, url=line.url, max_batch=4)
        rows = [np.full(4, n, np.float32) for n in range(200)]
        outputs = []
        async with Dispatcher([driver], retries=50) as dispatcher:
            async for output in dispatcher.stream(rows):
                outputs.append(int(output[0]))
                if len(outputs) in (30, 60):
                    line.cut()
            errors = dispatcher.stats().devices[0].errors
    assert outputs == [2 * n for n in range(200)]
    assert server.protocol == "http" or errors >= 1  # over HTTP it is sent again on a new line


async def test_a_server_that_is_killed_and_comes_back(apart, driver_for):
    driver = driver_for(apart, max_batch=2)
    rows = [np.full(4, n, np.float32) for n in range(300)]
    outputs, restarted = [], None
    async with Dispatcher([driver], retries=100) as dispatcher:
        async for output in dispatcher.stream(rows):
            outputs.append(int(output[0]))
            if len(outputs) == 40:
                apart.close()
                restarted = asyncio.create_task(asyncio.to_thread(apart.start))
        stats = dispatcher.stats().devices[0]
    await restarted
    assert outputs == [2 * n for n in range(300)]
    assert stats.errors >= 1


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # whatever it is
            await asyncio.sleep(0.002)


async def test_a_server_that_accepts_and_never_answers_holds_up_nobody(server, driver_for):
    """With default settings; another server of the kind goes on."""
    other = SimulatedDriver("other", 0.002, function=lambda x: x * 2)
    drivers = [driver_for(server, max_batch=4), other]
    rows = [ROW + index for index in range(600)]
    async with asyncio.timeout(100), Dispatcher(drivers, window=64) as dispatcher:
        done = 0
        async for output in dispatcher.stream(rows):
            assert (output == rows[done] * 2).all()
            done += 1
            if done == 100:
                server.delay = 1e6
        assert done == len(rows)
        assert dispatcher.stats().hedging.won > 0
        assert dispatcher.ready


@ONE_LOOP
async def test_a_server_that_never_answers_is_not_ready(server, driver_for):
    async with Dispatcher([driver_for(server)], timeout=Timeouts(total=0.5)) as dispatcher:
        for _ in range(20):  # so that it is known to be quick
            assert (await dispatcher.infer(ROW) == ROW * 2).all()
        server.delay = 1e6
        while dispatcher.ready:
            with pytest.raises(TaskError):
                await dispatcher.infer(ROW)
        server.delay = 0.0
        await asyncio.wait_for(_answered(dispatcher), 100)
        assert dispatcher.ready


async def _answered(dispatcher):
    """Ask until there is an answer."""
    while True:
        try:
            return await dispatcher.infer(ROW)
        except TaskError:
            continue
