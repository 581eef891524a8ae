"""What the firmware answers: on this computer under sanitizers, and in QEMU on both boards."""

import random
import struct

import numpy as np
import pytest
from wire_line import frame

HELLO, INFER, PING, STATS, RESET = 1, 2, 3, 4, 5
HELLO_REPLY, RESULT, PONG, STATS_REPLY, ERROR, LOG = 0x81, 0x82, 0x83, 0x84, 0xE0, 0xE1
MACHINES = {"stm32f405": "netduinoplus2", "mps2_an386": "mps2-an386"}


@pytest.fixture(params=["host", "stm32f405", "mps2_an386"])
def board(request):
    if request.param == "host":
        return request.getfixturevalue("host_board")
    firmware = request.getfixturevalue("build")("digits", "digits", board=request.param)
    board = request.getfixturevalue("emulate")(firmware.elf, MACHINES[request.param])
    board.hello()
    return board


def request_of(samples):
    return struct.pack("<HH", len(samples), 0) + samples.tobytes()


def stats(board):
    return struct.unpack("<9I", board.ask(STATS, 40000)[2])


def infer_all(board, numbers, outputs, chunk, in_flight):
    chunks = [numbers[at : at + chunk] for at in range(0, len(numbers), chunk)]
    sent, answers = 0, []
    while len(answers) < len(chunks):
        while sent < len(chunks) and sent - len(answers) < in_flight:
            board.send(INFER, sent + 1, request_of(chunks[sent]))
            sent += 1
        answer = board.receive(20)
        if answer[1]:
            assert answer[:2] == (RESULT, len(answers) + 1)
            answers.append(answer[2][8:])
    got = np.frombuffer(b"".join(answers), np.int8).reshape(outputs.shape)
    np.testing.assert_array_equal(got, outputs)


def test_all_digits_are_bit_exact_with_several_requests_in_flight(board, digits):
    before = stats(board)  # a board that boots may have seen half a hello
    infer_all(board, *digits, chunk=8, in_flight=4)
    assert stats(board)[2:5] == before[2:5]


def test_one_by_one_and_as_many_as_fit(board, digits):
    numbers, outputs = digits
    infer_all(board, numbers[:50], outputs[:50], chunk=1, in_flight=4)
    infer_all(board, numbers[:96], outputs[:96], chunk=32, in_flight=2)


def test_hello_tells_the_model_and_the_limits(board, build):
    firmware = build("digits", "digits")
    payload = board.hello()
    protocol, frames, samples, boots, buffer, hz = struct.unpack("<BBHIII", payload[:16])
    assert (protocol, frames, samples, boots) == (2, 4, 32, 1)
    assert buffer == 4 + 4 + 32 * 64 + 4
    assert hz > 1_000_000
    assert firmware.model_id.encode() in payload
    assert firmware.input.axes == (1, 2, 0)  # of [height, width, channels] in PyTorch's order
    assert firmware.input.to_bytes() in payload
    assert payload.endswith(firmware.output.to_bytes())


@pytest.mark.parametrize(
    ("kind", "payload", "code", "detail"),
    [
        (0x44, b"", 1, 0x44),
        (HELLO, b"x", 2, 0),
        (STATS, b"x", 2, 0),
        (INFER, b"", 2, 4),
        (INFER, b"\1\0\0", 2, 4),
        (INFER, struct.pack("<HH", 1, 0) + bytes(63), 2, 68),
        (INFER, struct.pack("<HH", 1, 0) + bytes(65), 2, 68),
        (INFER, struct.pack("<HH", 0, 0), 3, 32),
        (INFER, struct.pack("<HH", 33, 0), 3, 32),
        (PING, bytes(65), 2, 64),
        (RESET, b"RSE", 2, 4),
        (RESET, b"TEST", 6, 0),
    ],
)
def test_wrong_requests_are_errors_with_a_code(host_board, kind, payload, code, detail):
    kind, _, answer = host_board.ask(kind, 77, payload)
    assert kind == ERROR
    assert struct.unpack("<HI", answer[:6]) == (code, detail)
    assert answer[6:].decode()


def test_ping_returns_its_payload(board):
    for size in (0, 1, 64):
        payload = bytes(range(size))
        assert board.ask(PING, 5, payload) == (PONG, 5, payload)


def test_a_repeated_request_is_answered_again(board):
    first = board.ask(PING, 9, b"x")
    assert board.ask(PING, 9, b"x") == first


def test_garbage_and_cut_frames_cost_nothing_else(board):
    random.seed(42)
    for _ in range(30):
        whole = frame(INFER, 3, random.randbytes(random.randrange(300)))
        board.write(random.randbytes(random.randrange(50)) + whole[: random.randrange(len(whole))])
        assert board.ask(PING, 11, b"here") == (PONG, 11, b"here")
    counted = stats(board)
    assert counted[2] + counted[3] > 0


def test_reset_boots_again_and_is_counted(board):
    board.send(RESET, 3, b"RSET")
    kind, sequence, payload = board.receive()
    while kind != HELLO_REPLY or sequence:
        kind, sequence, payload = board.receive()
    while struct.unpack("<I", payload[4:8])[0] != 2:  # the first boot's own hello came before
        kind, sequence, payload = board.receive()
    assert board.ask(PING, 4, b"") == (PONG, 4, b"")
    assert stats(board)[5] == 2


@pytest.mark.parametrize("name", MACHINES)
def test_little_of_the_stack_is_used(build, emulate, digits, name):
    board = emulate(build("digits", "digits", board=name).elf, MACHINES[name])
    board.hello()
    infer_all(board, digits[0][:8], digits[1][:8], chunk=1, in_flight=4)
    assert 100 < stats(board)[6] < 2048
