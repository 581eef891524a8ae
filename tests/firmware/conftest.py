"""The digits firmware, and a peer for boards that shares no code with the driver."""

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for wire_line

from wire_line import frame, opened


class Board:
    """The host's end of a line, on file descriptors."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.rest = b""

    def send(self, *parts):
        self.write(frame(*parts))

    def write(self, data):
        os.write(self.sink, data)

    def receive(self, timeout=10.0):
        """The next frame's type, sequence and payload, or ``None``."""
        end = time.monotonic() + timeout
        while True:
            while b"\0" in self.rest:
                coded, self.rest = self.rest.split(b"\0", 1)
                if coded:
                    return opened(coded)
            if not select.select([self.source], [], [], max(0, end - time.monotonic()))[0]:
                return None
            data = os.read(self.source, 65536)
            if not data:
                raise EOFError
            self.rest += data

    def ask(self, kind, sequence, payload=b"", timeout=10.0):
        """The answer to one request; what the board says of its own accord is skipped."""
        self.send(kind, sequence, payload)
        while (answer := self.receive(timeout)) and answer[1] != sequence:
            pass
        return answer

    def hello(self):
        """Say hello until the board has booted."""
        for sequence in range(1, 40):
            if answer := self.ask(1, sequence, timeout=0.25):
                return answer[2]
        raise AssertionError("no HELLO_REPLY")


@pytest.fixture(scope="session")
def build():
    """``build_firmware``, where its tools are."""
    pytest.importorskip("bakenn")
    pytest.importorskip("sklearn")
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("needs arm-none-eabi-gcc")
    from asyncinfer_drivers.cortex_m.build import build_firmware

    return build_firmware


@pytest.fixture(scope="session")
def digits(build):
    """All digits as the board takes them, and the reference's answers."""
    from asyncinfer_drivers.cortex_m.builder.judge import quantize
    from asyncinfer_drivers.cortex_m.builder.samples import load_samples

    firmware = build("digits", "digits")
    numbers = quantize(firmware.input, load_samples("digits"))
    return numbers, firmware.reference(numbers)


@pytest.fixture
def start(request):
    """Start a program with a line on its standard input and output, or QEMU with one on a pty."""

    def run(*command):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        request.addfinalizer(lambda: stop(process))
        return process

    def stop(process):
        process.kill()
        process.communicate()

    return run


@pytest.fixture
def emulate(start):
    """Boot an ELF in QEMU."""
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("needs qemu-system-arm")

    def run(elf, machine, *options):
        line = ["-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none"]
        process = start("qemu-system-arm", "-M", machine, *line, "-kernel", str(elf), *options)
        return Board(process.stdout.fileno(), process.stdin.fileno())

    return run


@pytest.fixture
def host_board(build, start, tmp_path_factory):
    """The firmware's portable parts on this computer, under the sanitizers."""
    from asyncinfer_drivers.cortex_m.build import build_host_program

    program = tmp_path_factory.getbasetemp() / "firmware-host"
    if not program.exists():
        build_host_program(build("digits", "digits"), program)
    process = start(program)
    return Board(process.stdout.fileno(), process.stdin.fileno())
