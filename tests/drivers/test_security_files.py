"""Files from elsewhere: models that are programs, weights, pictures, arrays, lists of paths."""

import asyncio
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from asyncinfer.cli import inputs
from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers._torch import load as loading
from asyncinfer_drivers.cortex_m.builder.samples import load_samples
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.models._images import read_image

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(loading, "_told", set())


@pytest.mark.parametrize(("suffix", "kind"), [(".pt", "TorchScript"), (".pt2", "torch.export")])
def test_files_that_are_programs_are_said_to_be_once(tmp_path, caplog, suffix, kind):
    file = tmp_path / f"net{suffix}"
    example = torch.zeros(2, 3)
    if suffix == ".pt":
        torch.jit.trace(nn.ReLU(), example).save(file)
    else:
        torch.export.save(torch.export.export(nn.ReLU(), (example,)), file)
    with caplog.at_level(logging.WARNING, "asyncinfer.torch"):
        for _ in range(3):
            assert loading.load(str(file), CPU).module(example).shape == (2, 3)
    (told,) = [one for one in caplog.records if one.name == "asyncinfer.torch"]
    assert f"net{suffix} is a {kind} file, which is a program" in told.getMessage()
    assert "load only those you trust" in told.getMessage()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_that_are_a_pickle_are_not_unpickled(tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "weights.pt"
    torch.save({"weight": Bomb(mark)}, file)
    with pytest.raises(ConfigError, match=r"is a pickled object of the class .*mkdir.* not loaded"):
        loading.load(file, CPU)
    assert not mark.exists()


def test_torch_load_reads_only_weights():
    """Whoever adds a torch.load says weights_only=True."""
    root = Path(__file__).parents[2]
    found = [
        line
        for folder in ("asyncinfer", "drivers", "examples")
        for file in (root / folder).rglob("*.py")
        for line in file.read_text().splitlines()
        if "torch.load(" in line
    ]
    assert len(found) >= 2
    assert all("weights_only=True" in line for line in found)


@pytest.mark.parametrize("read", [read_image, inputs.read_picture])
def test_pictures_that_are_programs_or_bombs_are_refused(tmp_path, read):
    Image.new("RGB", (2, 2)).save(tmp_path / "program.eps")
    with pytest.raises(InputError, match="EPS is a program"):
        read(tmp_path / "program.eps")
    Image.new("1", (10_000, 6_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(InputError, match=r"more than 50,000,000 pixels"):
        read(tmp_path / "bomb.png")


def test_an_array_is_neither_an_archive_nor_a_pickle(tmp_path):
    mark = tmp_path / "mark"
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez_compressed(file, a=np.zeros(1_000_000))
    np.save(tmp_path / "objects.npy", np.array([Bomb(mark)]), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "zip.npy", "w") as archive:
        archive.writestr("a", "b")
    for name in ("archive", "objects", "zip"):
        with pytest.raises(ConfigError, match=r"cannot be read as a \.npy array"):
            inputs.collect([str(tmp_path / f"{name}.npy")], None)
        with pytest.raises(ConfigError, match="no file of calibration inputs"):
            load_samples(str(tmp_path / f"{name}.npy"))
    assert not mark.exists()


def test_an_array_that_says_it_is_larger_than_its_file(tmp_path):
    file = tmp_path / "large.npy"
    with file.open("wb") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)}
        np.lib.format.write_array_header_1_0(out, header)
        out.write(bytes(64))
    with pytest.raises(ConfigError, match=r"large\.npy"):
        inputs.collect([str(file)], None)
    with pytest.raises(ConfigError, match="no file of calibration inputs"):
        load_samples(str(file))


def test_a_line_without_an_end_is_not_read_to_it():
    with open("/dev/zero", "rb") as zeros:  # noqa: PTH123  # a descriptor is all that is needed
        lines = inputs.Lines(zeros.fileno())

        async def first():
            return await asyncio.wait_for(anext(lines), 20)

        with pytest.raises(ConfigError, match="a line of more than 65,536 bytes"):
            asyncio.run(first())


@pytest.mark.parametrize("icount", ["shift=auto,rr=record,rrfile=/tmp/x", "3,rrfile=x", "", "-3"])
def test_qemu_is_not_told_to_write_files(icount):
    with pytest.raises(ConfigError, match="icount"):
        EmulatedCortexM4("firmware.elf", icount=icount)


@pytest.mark.parametrize("icount", [3, "auto", "shift=5,align=on", None])
def test_qemu_may_count_instructions(icount):
    assert EmulatedCortexM4("firmware.elf", icount=icount).icount == icount
