"""The bytes of every frame, and a decoder that takes anything."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinfer_drivers.cortex_m import constants, frames
from asyncinfer_drivers.cortex_m.codec import (
    CodecError,
    Decoder,
    checked,
    cobs_decode,
    cobs_encode,
    sealed,
    wrapped,
)
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.specs import BoardSpec, TensorSpec

HEADER = Path(__file__).parents[3] / "drivers" / "firmware" / "include" / "protocol.h"

X = TensorSpec("x", Datatype.INT8, (8, 8, 1), 0.5, -3, (1, 2, 0))
Y = TensorSpec("y", Datatype.FP32, (10,))
BOARD = BoardSpec("b", "fw", "m", (X,), (Y,), 4, 16, 2, 2048, 1000)
UNSAID = tuple((replace(tensor, axes=None),) for tensor in (X, Y))
OLD_BOARD = replace(BOARD, inputs=UNSAID[0], outputs=UNSAID[1], protocol=1)

#: frames and their bodies without the checksum, written by hand from docs/wire-protocol.md
KNOWN = [
    (frames.Hello(1), "01 01 0100"),
    (frames.Infer(0x1234, 2, b"\x00\x7f"), "01 02 3412 0200 0000 007f"),
    (frames.Ping(2, b"hi"), "01 03 0200 6869"),
    (frames.Stats(3), "01 04 0300"),
    (frames.Reset(4), "01 05 0400 52534554"),
    (
        frames.HelloReply(0, BOARD),
        (
            "01 81 0000 02 04 1000 02000000 00080000 e8030000 01 62 02 6677 01 6d"
            "01 01 78 06 03 08000000 08000000 01000000 010200 0000003f fdffffff"
            "01 01 79 0b 01 0a000000 00 00000000 00000000"
        ),
    ),
    (
        frames.HelloReply(0, OLD_BOARD),
        (
            "01 81 0000 01 04 1000 02000000 00080000 e8030000 01 62 02 6677 01 6d"
            "01 01 78 06 03 08000000 08000000 01000000 0000003f fdffffff"
            "01 01 79 0b 01 0a000000 00000000 00000000"
        ),
    ),
    (frames.Result(5, 1, 258, b"\x80"), "01 82 0500 0100 0000 02010000 80"),
    (frames.Pong(6), "01 83 0600"),
    (
        frames.StatsReply(7, frames.DeviceStats(1, 2, 3, 4, 5, 6, 7, 8, 9)),
        "01 84 0700" + "".join(f"0{n}000000" for n in range(1, 10)),
    ),
    (frames.Error(8, 4, 16, "é"), "01 e0 0800 0400 10000000 c3a9"),
    (frames.Log(0, 30, "hot"), "01 e1 0000 1e 686f74"),
]

#: COBS as its authors define it, and the cases around a run of 254
COBS = [
    (b"", b"\x01"),
    (b"\0", b"\x01\x01"),
    (b"\0\0", b"\x01\x01\x01"),
    (b"\x11\x22\0\x33", b"\x03\x11\x22\x02\x33"),
    (b"\x11\0\0\0", b"\x02\x11\x01\x01\x01"),
    (bytes(range(1, 255)), b"\xff" + bytes(range(1, 255))),
    (bytes(range(255)), b"\x01\xff" + bytes(range(1, 255))),
    (bytes(range(1, 256)), b"\xff" + bytes(range(1, 255)) + b"\x02\xff"),
    (bytes(range(2, 256)) + b"\0", b"\xff" + bytes(range(2, 256)) + b"\x01\x01"),
]


def test_the_firmwares_header_is_made_from_the_table():
    assert HEADER.read_text() == constants.c_header()


@pytest.mark.parametrize(("frame", "body"), KNOWN, ids=lambda x: type(x).__name__)
def test_known_bytes(frame, body):
    assert frame.to_bytes() == sealed(bytes.fromhex(body))
    assert type(frame).from_bytes(frame.to_bytes()) == frame
    assert frames.parse(frame.to_bytes()) == frame


def test_the_checksum_is_zlibs_at_the_end_in_little_endian():
    assert sealed(b"123456789") == b"123456789" + (0xCBF43926).to_bytes(4, "little")


def test_every_type_has_a_known_frame():
    assert {frame.TYPE for frame, _ in KNOWN} == set(constants.FrameType)


@pytest.mark.parametrize(("data", "coded"), COBS)
def test_cobs(data, coded):
    assert cobs_encode(data) == coded
    assert cobs_decode(coded) == data


def test_a_full_run_may_be_followed_by_an_empty_one():
    assert cobs_decode(b"\xff" + bytes(range(1, 255)) + b"\x01") == bytes(range(1, 255))


@given(st.binary(max_size=1200))
def test_cobs_there_and_back(data):
    coded = cobs_encode(data)
    assert 0 not in coded
    assert len(coded) <= len(data) + len(data) // 254 + 1
    assert cobs_decode(coded) == data


@pytest.mark.parametrize("coded", [b"\x05\x01", b"\x02", b"\x02\x00", b"\x01\x00\x01"])
def test_what_is_no_cobs(coded):
    with pytest.raises(CodecError):
        cobs_decode(coded)


@pytest.mark.parametrize("frame", [frame for frame, _ in KNOWN], ids=lambda x: type(x).__name__)
def test_every_flipped_bit_is_seen(frame):
    body = frame.to_bytes()
    for bit in range(8 * len(body)):
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            frames.parse(bytes(damaged))


@pytest.mark.parametrize("frame", [frame for frame, _ in KNOWN], ids=lambda x: type(x).__name__)
def test_every_payload_length_is_checked(frame):
    content = checked(frame.to_bytes())
    for size in range(4, len(content) + 70):
        body = sealed(content[:size].ljust(size, b"\x7f"))
        try:
            again = frames.parse(body)
        except CodecError:
            continue
        assert again.to_bytes() == body or "\ufffd" in str(again)


@pytest.mark.parametrize(
    "content", ["", "01", "02010100", "01990100", "0101010000", "010300" + "00" * 70]
)
def test_bodies_that_are_no_frame(content):
    with pytest.raises(CodecError):
        frames.parse(sealed(bytes.fromhex(content)))


def test_a_frame_of_another_type_is_refused():
    with pytest.raises(CodecError, match="HELLO, not Infer"):
        frames.Infer.from_bytes(frames.Hello(1).to_bytes())


@pytest.mark.parametrize("axes", ["010203", "000001", "ff0001", "030201"])
def test_axes_that_are_no_order(axes):
    body = checked(frames.HelloReply(0, BOARD).to_bytes())
    wrong = body.replace(bytes.fromhex("010200 0000003f"), bytes.fromhex(axes + "0000003f"))
    with pytest.raises(CodecError, match="axes"):
        frames.parse(sealed(wrong))


def test_of_a_later_protocol_the_number_is_read():
    later = sealed(bytes.fromhex("01 81 0000 03 04 1000 02000000 00080000 e8030000") + b"new")
    board = frames.parse(later).board
    assert (board.protocol, board.inputs) == (3, ())


def test_a_text_too_long_for_its_length_byte():
    with pytest.raises(ValueError, match="255"):
        TensorSpec("x" * 256, Datatype.INT8, (1,)).to_bytes()


@given(st.binary(max_size=300))
def test_any_content_is_a_frame_or_a_codec_error(payload):
    for kind in constants.FrameType:
        try:
            frame = frames.parse(sealed(bytes([1, kind, 1, 0]) + payload))
        except CodecError:
            continue
        assert kind == frame.TYPE


BODIES = [frame.to_bytes() for frame, _ in KNOWN]
STREAM = b"".join(map(wrapped, BODIES))


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_bytes_may_be_cut_anywhere(cuts):
    decoder, bodies = Decoder(), list[bytes]()
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        bodies += decoder.feed(STREAM[start:end])
    assert bodies == BODIES
    assert (decoder.framing_errors, decoder.held) == (0, 0)


@given(st.lists(st.binary(max_size=400), max_size=20), st.integers(0, 100))
def test_the_decoder_takes_anything_and_stays_small(parts, limit):
    decoder = Decoder(limit)
    for part in parts:
        for body in decoder.feed(part):
            assert len(body) <= limit + limit // 254 + 1
        assert decoder.held <= limit + limit // 254 + 1
    decoder.limit = 4096
    assert decoder.feed(b"\0" + STREAM)[-len(BODIES) :] == BODIES


def test_a_flood_without_a_zero_is_one_framing_error():
    decoder = Decoder(100)
    for _ in range(1000):
        assert decoder.feed(b"\x01" * 1000) == []
        assert decoder.held == 0
    assert decoder.feed(b"\0" + STREAM) == BODIES[:]
    assert decoder.framing_errors == 1


def test_a_damaged_frame_costs_no_other():
    chance = random.Random(42)
    for _ in range(300):
        damaged = bytearray(wrapped(BODIES[1]))
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        bodies = Decoder().feed(wrapped(BODIES[0]) + bytes(damaged) + wrapped(BODIES[2]))
        assert bodies[0] == BODIES[0]
        assert bodies[-1] == BODIES[2]
