"""The board in memory answers as docs/wire-protocol.md says: it is what other tests rely on."""

import pytest

from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import Decoder, sealed, wrapped
from asyncinfer_drivers.cortex_m.constants import ErrorCode


class Host:
    """Sends bytes to the board and has its answers."""

    def __init__(self, peer):
        self.peer = peer
        self.decoder = Decoder()
        self.answers = []
        peer.attach(self)

    def write(self, data):
        self.answers += map(frames.parse, self.decoder.feed(data))

    def abort(self):
        pass

    def ask(self, content):
        """What a frame with this content, in hexadecimal, is answered with."""
        self.answers.clear()
        self.peer.data_received(wrapped(sealed(bytes.fromhex(content))))
        return list(self.answers)


@pytest.mark.parametrize(
    ("content", "code", "detail"),
    [
        ("01 77 0500", ErrorCode.BAD_TYPE, 0),
        ("01 82 0500 0100 0000 00000000 00", ErrorCode.BAD_TYPE, 0),
        ("01 83 0500", ErrorCode.BAD_TYPE, 0),
        ("01 01 0500 00", ErrorCode.BAD_LENGTH, 0),
        ("01 02 0500 0100", ErrorCode.BAD_LENGTH, 0),
        ("01 02 0500 0100 0000 00", ErrorCode.BAD_LENGTH, 8),
        ("01 02 0500 0000 0000", ErrorCode.TOO_MANY, 4),
        ("01 02 0500 0500 0000" + "00" * 20, ErrorCode.TOO_MANY, 4),
        ("01 05 0500 52534555", ErrorCode.BAD_MAGIC, 0),
    ],
)
def test_requests_that_are_refused(peer, content, code, detail):
    (answer,) = Host(peer).ask(content)
    assert (answer.sequence, answer.code, answer.detail) == (5, code, detail)
    assert peer.stats.errors_sent == 1


@pytest.mark.parametrize("content", ["", "02 01 0500", "01 02 0500" + "00" * 60])
def test_bodies_that_are_not_answered(peer, content):
    assert Host(peer).ask(content) == []
    assert peer.stats.crc_errors + peer.stats.framing_errors == 1


def test_a_wrong_checksum_is_counted_and_the_next_frame_is_answered(peer):
    host = Host(peer)
    body = bytearray(frames.Ping(1).to_bytes())
    body[-1] ^= 1
    peer.data_received(wrapped(bytes(body)))
    assert host.answers == []
    assert host.ask("01 03 0600 4142") == [frames.Pong(6, b"AB")]
    assert peer.stats == frames.DeviceStats(
        frames_received=1, frames_sent=1, crc_errors=1, boots=peer.spec.boot_counter
    )
