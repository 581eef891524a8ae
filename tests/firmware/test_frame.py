"""The firmware's frame parser on this computer, under AddressSanitizer and UBSan."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from wire_line import cobs, frame, framed, opened, sealed

HERE = Path(__file__).parent
FIRMWARE = HERE.parents[1] / "drivers" / "firmware"

WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-g", "-O1"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CC = shutil.which("cc")

pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")


def compile_c(compiler, program, source, *flags):
    include = [f"-I{FIRMWARE / name}" for name in ("include", "src")]
    parts = [HERE / source, FIRMWARE / "src" / "frame.c"]
    command = [compiler, *WARNINGS, *flags, *include, *map(str, parts), "-o", str(program)]
    subprocess.run(command, check=True, timeout=100)
    return program


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame")
    return compile_c(CC, folder / "harness", "frame_harness.c", *SANITIZERS)


def run(harness, data, *arguments):
    done = subprocess.run([harness, *arguments], input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def decode(harness, data, capacity=1024):
    return run(harness, data, "decode", str(capacity)).decode().splitlines()


def test_known_frames_are_read(harness):
    # PING, sequence 0x1234, payload 00 ff
    known = bytes.fromhex("00050103341206ffb3ffd77000")
    assert decode(harness, known) == ["3 4660 00ff"]
    assert frame(3, 0x1234, b"\0\xff") == known
    assert decode(harness, frame(1, 1)) == ["1 1 "]


@pytest.mark.parametrize("size", [0, 1, 245, 246, 247, 253, 254, 255, 500, 508, 509, 762])
@pytest.mark.parametrize("fill", [b"\0", b"\1", b"\xff"])
def test_every_length_goes_both_ways(harness, size, fill):
    body = sealed(2, 65535, fill * size)
    assert decode(harness, framed(body), len(body)) == [f"2 65535 {(fill * size).hex()}"]
    sent = run(harness, body[:-4], "encode")
    assert sent[0] == sent[-1] == 0
    assert 0 not in sent[1:-1]
    assert opened(sent[1:-1]) == (2, 65535, fill * size)


def test_a_body_that_fits_exactly_is_read_and_one_byte_more_is_not(harness):
    body = sealed(3, 1, b"x" * 20)
    assert decode(harness, framed(body), len(body)) == [f"3 1 {b'x'.hex() * 20}"]
    assert decode(harness, framed(body), len(body) - 1) == ["malformed"]


def test_what_is_wrong_is_told_and_the_next_frame_is_read(harness):
    good = frame(4, 9)
    flipped = bytearray(frame(3, 1, b"abc"))
    flipped[6] ^= 1
    wrong = {
        bytes(flipped): "crc",
        framed(sealed(3, 1, version=2)): "malformed",
        framed(b"short"): "malformed",
        b"\0\x09ab\0": "malformed",
        b"\0" + b"\x07" * 5000 + b"\0": "malformed",
    }
    for data, event in wrong.items():
        assert decode(harness, data + good) == [event, "4 9 "], data


def test_a_frame_cut_anywhere_costs_only_itself(harness):
    whole, good = frame(2, 3, bytes(range(40))), frame(1, 2)
    for cut in range(2, len(whole) - 1):
        events = decode(harness, whole[:cut] + good, 64)
        assert events[-1] == "1 2 "
        assert len(events) == 2
        assert events[0] in ("crc", "malformed")


def test_empty_frames_are_ignored(harness):
    assert decode(harness, b"\0" * 100 + frame(1, 1) + b"\0" * 100) == ["1 1 "]


@pytest.mark.parametrize("capacity", [1, 7, 8, 9, 64, 300])
def test_garbage_never_leaves_the_body(harness, capacity):
    random.seed(capacity)
    few = bytes(random.choice(b"\0\1\2\3\xfe\xff") for _ in range(200_000))
    events = decode(harness, few + random.randbytes(300_000) + b"\0" + frame(1, 5), capacity)
    assert set(events) <= {"crc", "malformed", "1 5 "}
    assert (events[-1] == "1 5 ") == (capacity >= 8)


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang with libFuzzer")
def test_the_fuzzer_finds_nothing_in_a_moment(tmp_path):
    flags = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    program = compile_c(shutil.which("clang"), tmp_path / "fuzz", "fuzz_frame.c", *flags)
    command = [
        program,
        "-runs=100000",
        "-rss_limit_mb=0",
        "-max_len=2048",
        "-seed=42",
        "-verbosity=0",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_other_coder_is_right():
    assert cobs(b"\x11\x22\0\x33") == bytes.fromhex("0311220233")  # from the paper
    assert cobs(b"\0") == b"\1\1"
    assert cobs(b"x" * 254) == b"\xff" + b"x" * 254 + b"\1"
