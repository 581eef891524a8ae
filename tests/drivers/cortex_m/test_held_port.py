"""A port belongs to one process, which has it and frees it whatever else that process does."""

import asyncio
import errno
import fcntl
import logging
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import serial
from board_lines import over_pty

from asyncinfer.errors import DeviceLost
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.held import hold, let_go
from asyncinfer_drivers.cortex_m.ports import connector
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import SerialOptions

#: what ``select`` takes
SELECTED = 1024
PATIENT = Timing(hello=0.05)
PICTURE = [[1.0, 2.0], [3.0, 4.0]]


@contextmanager
def many_open_files():
    """So many that the next one has a number which ``select`` does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * SELECTED:
        pytest.skip("this user may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * SELECTED, hard))
    opened = list[int]()
    try:
        while not opened or opened[-1] < SELECTED:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def forked_worker():
    """A process that was forked from this one and does nothing until it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, b"!")
            signal.pause()
        finally:
            os._exit(0)
    try:
        os.read(reader, 1)  # it has begun
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


@pytest.fixture(params=["", "serialx://"], ids=["pyserial", "serialx"])
def library(request):
    """What goes before a port's name."""
    return request.param


async def test_a_thousand_open_files_do_no_harm(board, answer, library, caplog):
    caplog.set_level(logging.DEBUG, "asyncio")
    async with over_pty(board()) as port:
        driver = CortexM4Driver(library + port, timing=PATIENT)
        with many_open_files():
            await driver.open()
            (output,) = await driver.infer([PICTURE])
            await driver.close()
    assert output.tolist() == answer(PICTURE)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def is_free(port):
    """Whether the lock can be had."""
    fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
async def test_a_forked_worker_keeps_no_port(board, answer, library):
    async with over_pty(board()) as port:
        driver = CortexM4Driver(library + port, timing=PATIENT)
        await driver.open()
        try:
            with forked_worker() as pid:
                assert not is_free(port)
                assert len(files_of(port, pid)) == 1  # the test's own end, and not the driver's
                (output,) = await driver.infer([PICTURE])
                assert output.tolist() == answer(PICTURE)
                await driver.close()
                assert is_free(port)
                await driver.open()
        finally:
            await driver.close()


def leads(path, port):
    try:
        return str(path.readlink()) == port
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
async def test_closing_frees_the_port_though_others_have_the_same_file(board, library):
    """A fork that is not Python's leaves it to them."""
    async with over_pty(board()) as port:
        driver = CortexM4Driver(library + port, timing=PATIENT)
        await driver.open()
        copies = [os.dup(int(path.name)) for path in files_of(port)]
        await driver.close()
        try:
            assert is_free(port)
        finally:
            for copy in copies:
                os.close(copy)


def files_of(port, process="self"):
    return [path for path in Path(f"/proc/{process}/fd").iterdir() if leads(path, port)]


async def test_a_started_program_gets_no_port(board, library):
    async with over_pty(board()) as port:
        driver = CortexM4Driver(library + port, timing=PATIENT)
        await driver.open()
        inherited = [os.get_inheritable(int(path.name)) for path in files_of(port)]
        await driver.close()
    assert inherited == [False, False]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
async def test_a_forked_worker_keeps_no_connection():
    """A serial server in the network serves one at a time."""
    ended = asyncio.Event()

    async def serve(reader, writer):
        assert await reader.read() == b""
        ended.set()
        writer.close()

    class Receiver:
        def __init__(self):
            self.lost = asyncio.Event()

        def data_received(self, data):
            raise AssertionError(data)

        def connection_lost(self, error):
            self.lost.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        receiver = Receiver()
        port = await connector("mcu", url, SerialOptions())(receiver)
        copy = os.dup(port._fd)  # as a fork that is not Python's would have
        try:
            with forked_worker():
                port.abort()
                await asyncio.wait_for(ended.wait(), 5)
                await asyncio.wait_for(receiver.lost.wait(), 5)
            port.abort()
        finally:
            os.close(copy)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_number_that_means_another_file_by_now_is_left_alone(tmp_path):
    port, other = (tmp_path / name for name in ("port", "other"))
    port.touch()
    other.touch()
    fd = os.open(port, os.O_RDWR)
    hold(fd)
    os.close(fd)
    assert os.open(other, os.O_RDWR) == fd
    try:
        with forked_worker() as pid:
            assert Path(f"/proc/{pid}/fd/{fd}").readlink() == other
    finally:
        let_go(fd)
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
async def test_a_port_without_permission_is_not_said_to_be_in_use(number, monkeypatch):
    def refused(opened):
        text = f"could not open port {opened.port}: [Errno {number}] {os.strerror(number)}"
        raise serial.SerialException(number, text)

    monkeypatch.setattr(serial.Serial, "open", refused)
    with pytest.raises(DeviceLost, match=f"clock0: {os.strerror(number)}: .*group"):
        await CortexM4Driver("/dev/clock0").open()
