"""Where no board answers HELLO, the error says what came."""

import asyncio
from dataclasses import replace

import pytest

from asyncinfer.errors import DeviceTimeout
from asyncinfer_drivers.cortex_m import CortexM4Driver, frames
from asyncinfer_drivers.cortex_m.codec import sealed, wrapped
from asyncinfer_drivers.cortex_m.link import Link
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import memory_pair


class Other:
    """What answers instead of a board."""

    def __init__(self, reply):
        self.reply = reply

    async def connect(self, receiver):
        host, self.end = memory_pair(receiver, self)
        return host

    def data_received(self, data):
        if answer := self.reply(data):
            self.end.write(answer)

    def connection_lost(self, error):
        pass


def said(virtual, reply, **options):
    async def go():
        link = Link("mcu", Other(reply).connect, Timing(open=3), **options)
        with pytest.raises(DeviceTimeout) as caught:
            await link.open()
        await link.close()
        await asyncio.sleep(0)
        return caught.value.message

    text = virtual(go())
    assert text.startswith("no answer to HELLO within 3 s: ")
    return text.partition(": ")[2]


def version(number):
    content = bytes([number, 0x81, 1, 0])
    return wrapped(sealed(content + b"what this version has"))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (lambda data: b"", "nothing came"),
        (lambda data: data, "an echo"),
        (lambda data: b"\r\n" + data, "an echo"),
        (lambda data: b"\r\nraspberrypi login: ", "'raspberrypi login:'"),
        (lambda data: b"\0sh: command not found\r\n\0", "another program"),
        (lambda data: bytes([0xE6, 0x98, 0x80, 0xFE, 0x06, 0x00, 0x9E]), "9,000 baud"),
        (lambda data: frames.encode(frames.Log(0, 20, "hot")), "12 LOG"),
        (lambda data: version(9), "version 9"),
        (lambda data: wrapped(sealed(bytes([1, 0x81, 1, 0]) + b"short")), "ends too early"),
    ],
)
def test_what_came_instead(virtual, reply, text):
    assert text in said(virtual, reply, byte_seconds=10 / 9_000)


def test_without_a_speed_none_is_named(virtual):
    assert "another speed of the line" in said(virtual, lambda data: b"\xff\x80\x01")


def test_a_text_does_not_command_the_terminal(virtual):
    text = said(virtual, lambda data: b"\x1b[2Jlogin: please enter your name and password here")
    assert "\x1b" not in text


def test_much_that_came_is_not_kept(virtual):
    assert "1,200,000 bytes" in said(virtual, lambda data: b"\xfe\x80\xfd\x90\xee" * 20_000)


def test_a_driver_says_it(virtual, board):
    peer = board(hung=True)

    async def go():
        driver = CortexM4Driver(peer.connect, timing=replace(Timing(), open=1.0))
        with pytest.raises(DeviceTimeout, match="within 1 s: nothing came"):
            await driver.open()

    virtual(go())
