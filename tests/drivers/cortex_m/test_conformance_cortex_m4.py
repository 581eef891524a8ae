"""The driver keeps every promise of a driver, over memory, TCP and a pty."""

import asyncio
import os
import sys
import tty
from pathlib import Path

import numpy as np
import pytest
from board_lines import Wire, over_pty, over_serialx, over_tcp

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer.testing import check_driver
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.ports import connector
from asyncinfer_drivers.cortex_m.transport import SerialOptions

PICTURES = [np.full((2, 2), n, float) for n in range(-4, 4)] + [
    np.arange(4.0).reshape(2, 2) * n for n in range(1, 5)
]
BAD = [np.zeros((3, 2)), "text", None, float("nan") * np.zeros((2, 2))]


def close(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


async def unplug(peer):
    peer.unplug()


@pytest.mark.parametrize("line", ["perfect", "bytewise", "delayed", "doubling", "damaging"])
async def test_over_memory(board, answer, fast, line):
    peer = board(line, frame_seconds=0.001)
    nobody = board(unplugged=True)

    def observed(call):
        return CortexM4Driver(peer.connect, timing=fast, preprocess=lambda x: (call(), x)[1])

    async def pull(driver):
        peer.unplug()

    report = await check_driver(
        lambda: CortexM4Driver(peer.connect, timing=fast),
        PICTURES,
        expected=answer,
        equal=close,
        bad_inputs=BAD,
        cannot_open=lambda: CortexM4Driver(nobody.connect, timing=fast),
        unplug=pull,
        observed=observed,
    )
    assert not report.skipped


@pytest.fixture(params=["", "serialx://"], ids=["pyserial", "serialx"])
def library(request):
    """What goes before a port's name."""
    return request.param


@pytest.mark.parametrize("line", [over_tcp, over_pty, over_serialx])
async def test_over_a_port(board, answer, fast, line):
    peer = board(frame_seconds=0.001)
    async with line(peer) as port:
        report = await check_driver(
            lambda: CortexM4Driver(port, timing=fast),
            PICTURES,
            expected=answer,
            equal=close,
            bad_inputs=BAD,
            cannot_open=lambda: CortexM4Driver("/dev/no-such-port", timing=fast),
        )
    assert set(report.skipped) == {
        "infer runs in the caller's contextvars context",
        "a lost device is a DeviceError, and open works again",
    }


@pytest.mark.parametrize("other", ["", "serialx://"], ids=["pyserial", "serialx"])
async def test_a_port_is_opened_by_one_only(board, fast, library, other):
    async with over_pty(board()) as port:
        first, second = (CortexM4Driver(by + port, timing=fast) for by in (library, other))
        await first.open()
        try:
            with pytest.raises(DeviceLost, match=f"cannot open {port}: it is in use"):
                await second.open()
        finally:
            await first.close()
        await second.open()
        await second.close()


async def test_the_other_end_of_a_pty_closes(board, answer, fast, library):
    peer = board(hung=False)
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, lambda: peer.data_received(os.read(master, 4096)))
    peer.attach(Wire(lambda data: os.write(master, data), lambda: None))
    driver = CortexM4Driver(library + os.ttyname(slave), timing=fast)
    os.set_blocking(slave, False)
    await driver.open()
    os.close(slave)
    call = asyncio.create_task(driver.infer([PICTURES[0]]))
    loop.remove_reader(master)
    os.close(master)
    with pytest.raises(DeviceLost):
        await call
    with pytest.raises(DeviceLost):
        await driver.infer([PICTURES[0]])
    await driver.close()


async def test_a_stalled_reader_does_not_keep_the_port(fast, library):
    master, slave = os.openpty()
    tty.setraw(slave)
    driver = CortexM4Driver(library + os.ttyname(slave), timing=fast)
    with pytest.raises(Exception, match="HELLO"):
        await driver.open()
    await driver.close()
    os.close(master)
    os.close(slave)


class Ended:
    """A receiver that waits for the end."""

    def __init__(self):
        self.calls = []
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.calls.append(data)

    def connection_lost(self, error):
        self.lost.set_result(error)


@pytest.mark.parametrize("hang_up", [False, True])
async def test_much_that_is_unsent_is_dropped(library, hang_up):
    master, slave = os.openpty()
    tty.setraw(slave)
    connect = connector("mcu", library + os.ttyname(slave), SerialOptions(baudrate=115200))
    receiver = Ended()
    port = await connect(receiver)
    os.close(slave)
    for _ in range(20):
        port.write(bytes(100_000))
    await asyncio.sleep(0.01)
    if hang_up:
        os.close(master)
    else:
        port.abort()
        port.abort()
    error = await asyncio.wait_for(receiver.lost, 2)
    assert (error is not None) == hang_up
    port.write(b"lost")
    port.abort()
    await asyncio.sleep(0.01)
    assert receiver.calls == []
    if not hang_up:
        os.close(master)


def open_files():
    return sorted(path.name for path in Path("/dev/fd").iterdir())


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="counts open files")
async def test_nothing_is_left_behind(board, answer, fast, library):
    tasks = asyncio.all_tasks()
    async with over_pty(board()) as port:
        driver = CortexM4Driver(library + port, timing=fast)
        files = []
        for _ in range(3):
            await driver.open()
            (output,) = await driver.infer([PICTURES[0]])
            assert output.tolist() == answer(PICTURES[0])
            await driver.close()
            files.append(open_files())
        with pytest.raises(DeviceLost, match="cannot open /dev/no-such-port: No such file"):
            await CortexM4Driver(f"{library}/dev/no-such-port", timing=fast).open()
        files.append(open_files())
    assert files == files[:1] * 4
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_serialx_gets_the_options_and_is_the_library_on_windows(monkeypatch):
    calls = []

    async def create(loop, factory, url, baudrate, **options):
        calls.append((url, baudrate, options["exclusive"]))
        calls.append((options["dtr_on_open"].to_bool(), options["rts_on_open"].to_bool()))
        raise ValueError("enough")

    monkeypatch.setattr("serialx.create_serial_connection", create)
    monkeypatch.setattr("sys.platform", "win32")
    driver = CortexM4Driver("COM3", baudrate=115200, rts=False)
    monkeypatch.undo()
    monkeypatch.setattr("serialx.create_serial_connection", create)
    with pytest.raises(DeviceLost, match="cannot open COM3: enough"):
        await driver.open()
    assert calls == [("COM3", 115200, True), (True, False)]


async def test_serialx_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "asyncinfer_drivers.cortex_m.serialx_port", raising=False)
    monkeypatch.setitem(sys.modules, "serialx", None)
    driver = CortexM4Driver("serialx:///dev/ttyACM0")
    with pytest.raises(ConfigError, match=r"serialx is not installed: .*asyncinfer\[serial\]"):
        await driver.open()


async def test_in_a_dispatcher_with_resets_and_cuts(board, answer, fast):
    peer = board("damaging", boot_seconds=0.002)
    pictures = [np.random.default_rng(n).uniform(-60, 60, (2, 2)).round(1) for n in range(600)]

    async def trouble():
        for _ in range(4):
            await asyncio.sleep(0.01)
            peer.reset()
            await asyncio.sleep(0.01)
            peer.unplug()

    driver = CortexM4Driver(peer.connect, timing=fast, max_batch=4)
    async with Dispatcher([driver], retries=50) as dispatcher:
        troubles = asyncio.create_task(trouble())
        outputs = [output.tolist() async for output in dispatcher.stream(pictures)]
        await troubles
    peer.stop()
    assert outputs == [answer(picture) for picture in pictures]
