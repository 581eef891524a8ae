"""A crash of the board: told after the boot that follows it."""

import socket
import struct

import pytest

HELLO_REPLY, LOG = 0x81, 0xE1


def checked(command):
    return b"$%s#%02x" % (command, sum(command) % 256)


def crash(path, registers):
    """Stop QEMU's core through its debugger port, set registers and let it run on."""
    with socket.socket(socket.AF_UNIX) as port:
        port.settimeout(10)
        port.connect(str(path))
        # it takes single registers only from a client that knows their description
        asked = [b"?", b"qXfer:features:read:target.xml:0,ffb"]
        asked += [b"P%x=%s" % (n, v.hex().encode()) for n, v in registers.items()]
        for command in asked:
            port.sendall(checked(command))
            answer = b""
            while b"#" not in answer:
                answer += port.recv(4096)
            port.sendall(b"+")
        port.sendall(checked(b"D"))
        port.recv(4096)


@pytest.mark.parametrize(
    ("registers", "said"),
    [
        ({15: 0x20010000 | 0xF0000000}, b"hard fault at pc"),  # no code there
        ({13: 0x1FFFFF00}, b"sp 1ffff"),  # the stack has run out of RAM
    ],
)
def test_a_fault_is_reported_after_the_reset(build, emulate, tmp_path, registers, said):
    path = tmp_path / "gdb"
    debugger = ["-chardev", f"socket,path={path},server=on,wait=off,id=g", "-gdb", "chardev:g"]
    board = emulate(build("digits", "digits").elf, "netduinoplus2", *debugger)
    board.hello()
    crash(path, {number: struct.pack("<I", value) for number, value in registers.items()})
    board.send(3, 5, b"wake")  # the core may sleep
    logs = []
    while not logs:
        frame = board.receive(10)
        assert frame, "no boot after the fault"
        logs += [frame[2]] if frame[0] == LOG else []
    assert logs[0][0] == 40
    assert said in logs[0]
    assert struct.unpack("<9I", board.ask(4, 6)[2])[5] == 2
