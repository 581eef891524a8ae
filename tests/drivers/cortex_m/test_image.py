"""A firmware goes to the board it was built for, by whichever tool and from whichever folder."""

import shlex
import struct
from dataclasses import replace

import numpy as np
import pytest

from asyncinfer.cli.firmware_board import TOOLS, flash
from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder.samples import load_module, load_samples, plain_name
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.image import board_of, check_image
from asyncinfer_drivers.cortex_m.transport import SerialOptions

#: a stack pointer, and where a reset goes, of an STM32
VECTORS = struct.pack("<II", 0x2002_0000, 0x0800_0101)


def image(spec, board):
    """As the build writes a board's identity into a program that has the word before, too."""
    identity = replace(spec, board=board, firmware="asyncinfer 1.2.3").to_bytes()[16:]
    return VECTORS + b"says asyncinfer and asyncinfer 2\0" + bytes(100) + identity + bytes(50)


def elf(machine, entry, *, bits=1):
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HHII", 2, machine, 1, entry)
    return head + bytes(100)


@pytest.mark.parametrize("board", ["stm32f405", "mps2_an386", "x", "nucleo_f446re"])
def test_a_firmware_says_its_board(peer, board):
    assert board_of(image(peer.spec, board)) == board


@pytest.mark.parametrize("suffix", [".elf", ".bin"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_firmware_for_another_board_is_not_flashed(peer, tmp_path, suffix, tool):
    for kind in (".elf", ".bin"):
        (tmp_path / f"firmware{kind}").write_bytes(image(peer.spec, "mps2_an386"))
    with pytest.raises(ConfigError, match="was built for board 'mps2_an386', not for 'stm32f405'"):
        flash(tmp_path / f"firmware{suffix}", "stm32f405", tool, dry_run=True)


async def test_a_firmware_for_another_board_is_not_emulated(peer, tmp_path, monkeypatch):
    monkeypatch.setattr("asyncinfer_drivers.cortex_m.emulated.missing_emulator", lambda: None)
    file = tmp_path / "firmware.elf"
    file.write_bytes(image(peer.spec, "mps2_an386"))
    with pytest.raises(ConfigError, match="was built for board 'mps2_an386', not for 'stm32f405'"):
        await EmulatedCortexM4(file).start()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (elf(62, 0x0800_0101, bits=2), "another processor"),
        (elf(8, 0x0800_0101), "another processor"),
        (elf(40, 0x0000_0101), "it begins at 0x101, its flash at 0x8000000"),
        (struct.pack("<II", 0x2000_0000, 0x101) + bytes(100), "begins at 0x101"),
        (b"text", "too short"),
        (b"", "too short"),
        (b"\x7fELF", "another processor"),
    ],
)
def test_what_is_no_firmware_for_this_board(tmp_path, data, text):
    file = tmp_path / "other.elf"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=text):
        check_image(file, "stm32f405")


@pytest.mark.parametrize("data", [elf(40, 0x0800_0101), VECTORS + bytes(100)])
def test_firmware_of_others_is_taken(tmp_path, data):
    """It says no board, and fits."""
    file = tmp_path / "other.elf"
    file.write_bytes(data)
    check_image(file, "stm32f405")


FOLDERS = [
    "plain",
    "with space",
    "a[1]",
    "a]b",
    "$HOME",
    'say "hi"',
    "back\\slash",
    "[exit]",
    "a;b",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_openocd_gets_the_path_as_it_is(peer, tmp_path, folder, capsys):
    tkinter = pytest.importorskip("tkinter", exc_type=ImportError)
    file = tmp_path / folder / "firmware.elf"
    file.parent.mkdir()
    file.write_bytes(image(peer.spec, "stm32f405"))
    flash(file, "stm32f405", "openocd", dry_run=True)
    command = shlex.split(capsys.readouterr().err.strip())
    tcl = tkinter.Tcl()
    # as openocd's startup.tcl has it, which evaluates the name a second time
    tcl.eval("proc write {name} {set ::got $name}")
    tcl.eval("proc program {name args} {set name \\{$name\\}; eval write $name}")
    tcl.eval(command[-1])
    assert tcl.getvar("got") == str(file)


def test_a_path_that_openocd_cannot_have_is_refused(peer, tmp_path):
    file = tmp_path / "a{b" / "firmware.elf"
    file.parent.mkdir()
    file.write_bytes(image(peer.spec, "stm32f405"))
    with pytest.raises(ConfigError, match="no braces"):
        flash(file, "stm32f405", "openocd", dry_run=True)


def test_a_name_that_looks_like_an_option(peer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "-f.bin"
    file.write_bytes(image(peer.spec, "stm32f405"))
    flash(file.relative_to(tmp_path), "stm32f405", "dfu-util", dry_run=True)
    assert capsys.readouterr().err.split()[-1] == "./-f.bin"


@pytest.mark.parametrize(
    "options", [{"baudrate": None}, {"baudrate": 0}, {"dtr": 1}, {"rts": "off"}, {"rts": None}]
)
def test_options_of_the_line_are_checked(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be "):
        SerialOptions(**options)


@pytest.mark.parametrize("options", [{"baudrate": 0}, {"baudrate": "fast"}, {"faults": 0.1}])
def test_options_of_the_emulated_line_are_checked(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be "):
        EmulatedCortexM4("firmware.elf", **options)


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        ("inputs.npz", "archive: save one of its arrays"),
        ("net.onnx", "net.onnx is a model: give --calibration"),
        ("net.pt2", "net.pt2 is a model: give --calibration"),
        ("nets:small", "not 'nets:small'"),
        (np.zeros((4, 1, 8, 8)), "all zero"),
    ],
)
def test_what_is_no_calibration(calibration, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        load_samples(calibration)
    if isinstance(calibration, str) and "." in calibration:
        with pytest.raises(ConfigError, match=text):
            load_samples(tmp_path / calibration)


def test_a_model_of_another_framework():
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=r"net.onnx: boards are built from PyTorch"):
        load_module("net.onnx")


def test_names_of_models_are_names_of_files():
    assert plain_name("lab/net 1") == "lab_net_1"
    assert plain_name("../../net") == ".._.._net"
    assert len(plain_name("ü" * 300)) == 64
    assert plain_name("") == "model"
