"""The line between driver and board: its speed, its faults, and its plug."""

import asyncio
import contextlib
import errno
import os
import socket
import tty

import pytest

from asyncinfer_drivers.cortex_m.proxy import Faults, SerialProxy
from asyncinfer_drivers.cortex_m.transport import BITS_PER_BYTE

PATTERN = bytes(range(256)) * 40


class Line:
    """A proxy with both ends in the test's hands."""

    def __init__(self, folder, **options):
        self.board, inner = socket.socketpair()
        self.board.setblocking(False)
        self.proxy = SerialProxy(folder / "port", inner, **options)
        self.fd = -1

    async def __aenter__(self):
        await self.proxy.__aenter__()
        self.open()
        return self

    async def __aexit__(self, *exc_info):
        self.close()
        await self.proxy.close()
        self.board.close()

    def open(self):
        self.fd = os.open(self.proxy.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self.fd)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    async def send(self, data):
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)

    async def receive(self):
        while True:
            try:
                return os.read(self.fd, 4096)
            except BlockingIOError:
                await asyncio.sleep(0.001)

    async def down(self, data, expected=None, quiet=0.5):
        """What the board gets of ``data``: ``expected`` bytes, or all until it is quiet."""
        sending = asyncio.create_task(self.send(data))
        loop, got = asyncio.get_running_loop(), b""
        with contextlib.suppress(TimeoutError):
            while expected is None or len(got) < expected:
                async with asyncio.timeout(quiet if expected is None else 30):
                    got += await loop.sock_recv(self.board, 65536)
        await sending
        return got

    async def up(self, data, expected):
        loop, got = asyncio.get_running_loop(), b""
        sending = asyncio.create_task(loop.sock_sendall(self.board, data))
        while len(got) < expected:
            async with asyncio.timeout(30):
                got += await self.receive()
        await sending
        return got


async def test_a_perfect_line_changes_nothing(tmp_path):
    async with Line(tmp_path) as line:
        assert await line.down(PATTERN, len(PATTERN)) == PATTERN
        assert await line.up(PATTERN, len(PATTERN)) == PATTERN
        assert line.proxy.bytes_down == line.proxy.bytes_up == len(PATTERN)
        assert not line.proxy.counts


async def test_no_line_is_faster_than_its_baud_rate(tmp_path):
    data = PATTERN[:2000]
    baudrate = 40_000
    async with Line(tmp_path, baudrate=baudrate) as line:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(line.down(data, len(data)), line.up(data, len(data)))
        # both directions at once; a late first look at the line may be made up for
        assert loop.time() - start >= len(data) * BITS_PER_BYTE / baudrate - 0.06


async def test_faults_are_as_likely_as_said_and_the_same_again(tmp_path):
    seen = []
    for _ in range(2):
        async with Line(tmp_path, faults=Faults(flip=0.01, drop=0.02, double=0.03)) as line:
            got = await line.down(PATTERN)
            counts = dict(line.proxy.counts)
        seen.append((got, counts))
        assert len(got) == len(PATTERN) - counts["drop"] + counts["double"]
        for kind, likely in (("flip", 0.01), ("drop", 0.02), ("double", 0.03)):
            assert counts[kind] == pytest.approx(likely * len(PATTERN), rel=0.3)
    assert seen[0] == seen[1]


async def test_delayed_bytes_come_late_and_whole(tmp_path):
    async with Line(tmp_path, faults=Faults(delay=0.002, pause=0.01)) as line:
        start = asyncio.get_running_loop().time()
        assert await line.down(PATTERN, len(PATTERN)) == PATTERN
        late = line.proxy.counts["delay"]
        assert late > 5
        assert asyncio.get_running_loop().time() - start >= late * 0.01 - 0.06


async def test_certain_faults(tmp_path):
    async with Line(tmp_path, faults=Faults(flip=1)) as line:
        got = await line.down(PATTERN, len(PATTERN))
        assert all((a ^ b).bit_count() == 1 for a, b in zip(got, PATTERN, strict=True))


async def test_faults_begin_and_end_while_the_line_is_in_use(tmp_path):
    async with Line(tmp_path) as line:
        assert await line.down(PATTERN, len(PATTERN)) == PATTERN
        line.proxy.disturb(Faults(flip=1))
        assert await line.down(PATTERN, len(PATTERN)) != PATTERN
        line.proxy.disturb(Faults())
        assert await line.down(PATTERN, len(PATTERN)) == PATTERN
        assert line.proxy.counts["flip"] == len(PATTERN)


async def test_a_cut_line_hangs_up_and_can_be_plugged_in_again(tmp_path):
    async with Line(tmp_path) as line:
        await line.down(b"one", 3)
        await line.proxy.cut()
        with pytest.raises(OSError) as hung_up:
            await line.send(b"lost")
        assert hung_up.value.errno == errno.EIO
        line.close()
        with pytest.raises(FileNotFoundError):
            line.open()
        line.proxy.replug()
        line.open()
        assert await line.down(b"two", 3) == b"two"


async def test_what_is_sent_while_nobody_listens_is_lost(tmp_path):
    async with Line(tmp_path) as line:
        assert await line.up(b"heard", 5) == b"heard"
        line.close()
        await asyncio.get_running_loop().sock_sendall(line.board, PATTERN * 10)
        while line.proxy.bytes_up < 5 + 10 * len(PATTERN):  # noqa: ASYNC110  # it only counts
            await asyncio.sleep(0.01)
        line.open()
        assert await line.up(b"again", 5) == b"again"
        assert await line.down(b"back", 4) == b"back"


async def test_the_port_hangs_up_with_the_board(tmp_path):
    async with Line(tmp_path) as line:
        await line.up(b"heard", 5)
        line.board.close()
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                while await line.receive():
                    pass
        assert not (tmp_path / "port").exists()
