"""A firmware that is copied to a folder of the user's: whole, or an error that says what to do."""

import os
import threading
import time
from pathlib import Path

import pytest

from asyncinfer.errors import ConfigError
from asyncinfer_drivers.cortex_m.builder import delivery
from asyncinfer_drivers.cortex_m.builder.delivery import delivered, scratch_folder
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.specs import TensorSpec

TENSOR = TensorSpec("tensor", Datatype.INT8, (1,), 1.0, 0, ())


def built(folder, name):
    made = Firmware(folder, "board", name, 1, 1, 1, (), TENSOR, (TENSOR,), 1, 1)
    made.generated.mkdir(parents=True)
    for file in (made.elf, made.bin, made.library, made.generated / "model.c"):
        file.write_text(name)
    made.save()
    return made


def contents(folder):
    record = Firmware.load(folder)
    texts = {file.read_text() for file in (record.elf, record.bin, record.generated / "model.c")}
    return record.model_id, texts


def test_builds_into_one_folder_take_turns(tmp_path):
    pair = [built(tmp_path / name, name) for name in ("one", "two")]
    folder, errors = tmp_path / "out", []

    def copy(made):
        try:
            for _ in range(20):
                delivered(made, folder)
        except ConfigError as error:
            errors.append(error)

    threads = [threading.Thread(target=copy, args=(made,)) for made in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    name, texts = contents(folder)
    assert texts == {name}


def test_what_is_interrupted_is_no_firmware(tmp_path, monkeypatch):
    one, two = (built(tmp_path / name, name) for name in ("one", "two"))
    folder = tmp_path / "out"
    assert delivered(one, folder).elf.read_text() == "one"

    def stopped(source, target, **how):
        Path(target).write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(delivery.shutil, "copyfile", stopped)
        with pytest.raises(KeyboardInterrupt):
            delivered(two, folder)
    assert Firmware.load(folder) is None
    delivered(two, folder)
    assert contents(folder) == ("two", {"two"})


@pytest.mark.parametrize("below", [".", "below"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path, below):
    made, file = built(tmp_path / "one", "one"), tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"cannot write a firmware to .*: give another folder"):
        delivered(made, file / below)
    with pytest.raises(ConfigError, match="let XDG_CACHE_HOME name"), scratch_folder(file / "a"):
        pass


def test_scratch_folders_of_killed_builds_go(tmp_path):
    left, young, other = (tmp_path / name for name in ("building-1", "building-2", "digits-1"))
    for folder in (left, young, other):
        folder.mkdir()
    old = time.time() - 2 * 86_400
    os.utime(left, (old, old))
    os.utime(other, (old, old))
    with scratch_folder(tmp_path / "made") as scratch:
        assert {*tmp_path.iterdir()} == {scratch, young, other}
    assert {*tmp_path.iterdir()} == {young, other}
