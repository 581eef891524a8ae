"""``asyncinfer run --resume``: what is in the file is kept, and the rest added, exactly once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asyncinfer.cli.durable import resumed
from asyncinfer.errors import AsyncInferError, ConfigError

SUFFIXES = [".jsonl", ".csv"]
NAMES = ["a.png", 'say "b".png', "c\nd.png", "ü.png"]


def row(index, output=1.5):
    name = NAMES[index % len(NAMES)]
    whole = {"index": index, "input": name, "output": output, "error": None}
    return whole | {"device": "cpu", "seconds": 0.25}


def written(path, indices, names=NAMES):
    with resumed(path, names) as kept:
        for index in indices:
            kept.write(row(index))
    return kept.rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_cut_of_the_file_is_made_whole_again(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    assert written(path, range(4)) == 0
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with resumed(path, NAMES) as kept:
            for index in range(kept.rows, 4):
                kept.write(row(index))
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_after_a_gap_or_a_broken_line_are_done_again(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    written(path, [0, 1, 3])
    assert written(path, [2, 3]) == 2
    again = path.read_bytes()
    path.write_bytes(again + b"\x00\xff{broken\n")
    assert written(path, []) == 4
    assert path.read_bytes() == again


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_other_inputs_is_refused_and_left_alone(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    written(path, range(4))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"row 1 is of the input .* in this run it is 'x.png'"):
        written(path, [], [NAMES[0], "x.png", *NAMES[2:]])
    with pytest.raises(ConfigError, match=r"row 3 is of the input 'ü.png', this run has no such"):
        written(path, [], NAMES[:3])
    assert path.read_bytes() == before


def test_a_table_of_something_else_is_refused(tmp_path):
    path = tmp_path / "o.csv"
    path.write_text("name,price\nbread,3\n")
    with pytest.raises(ConfigError, match="no file of this program"):
        written(path, [])
    assert path.read_text() == "name,price\nbread,3\n"


def test_two_programs_do_not_write_one_file(tmp_path):
    path = tmp_path / "o.jsonl"
    code = "from asyncinfer.cli.durable import *\nfrom pathlib import Path\nimport sys\n"
    code += f"with resumed(Path({str(path)!r}), []): print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match="another run is writing it"):
            written(path, [])
        other.communicate()
    assert written(path, [0]) == 0


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_second_run_is_refused_and_what_the_first_wrote_is_kept(cli, numbers, resume, suffix):
    np.save("x.npy", np.arange(3))
    path = numbers / f"o.{suffix}"
    code = "from asyncinfer.cli.rows import *\nfrom pathlib import Path\nimport sys\n"
    code += f"with opened(Path({str(path)!r}), quiet=True) as write:\n"
    row = {"index": 0, "input": "a", "output": 1, "error": None, "device": "d", "seconds": 1.0}
    code += f"    write({row!r}); print('open', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as other:
        assert other.stdout.readline() == b"open\n"
        before = path.read_bytes()
        ran = cli("run", "x.npy", "--devices", "sim:0.001", "--output", str(path), *resume)
        assert ran.status != 0
        assert "another run is writing it" in ran.err
        assert path.read_bytes() == before != b""
        other.communicate()
    assert cli("run", "x.npy", "--devices", "sim:0.001", "--output", str(path)).status == 0
    assert len(path.read_text().splitlines()) == 3 + (suffix == "csv"), "an old file is emptied"


def test_a_full_disk_ends_the_run_with_a_line(cli, tmp_path, numbers):
    np.save("x.npy", np.arange(3))
    (tmp_path / "o.jsonl").symlink_to("/dev/full")
    ran = cli("run", "x.npy", "--devices", "sim:0.001", "--output", str(tmp_path / "o.jsonl"))
    assert ran.status == 1
    assert "o.jsonl: cannot write: No space left on device" in ran.err


def test_rows_that_do_not_reach_the_disk_are_told(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    path = tmp_path / "o.jsonl"
    written(path, [0])
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(AsyncInferError, match="not all rows reached the disk"):
        written(path, [1])


def test_the_same_command_goes_on(cli, numbers):
    np.save("x.npy", np.arange(30))
    command = ("run", "x.npy", "--devices", "sim:0.001", "--output", "o.jsonl", "--resume")
    first = cli(*command, "--json")
    assert (first.json["tasks"], first.json["resumed"]) == (30, 0)
    path = Path("o.jsonl")
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole[:12], whole[12][:20]]))
    second = cli(*command, "--json")
    assert (second.json["tasks"], second.json["resumed"], second.status) == (18, 12, 0)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["index"], r["output"], r["input"]) for r in found] == [
        (i, i, f"x.npy[{i}]") for i in range(30)
    ]
    third = cli(*command, "--json")
    assert (third.json["tasks"], third.json["resumed"], third.status) == (0, 30, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x.npy --resume", "--resume goes with --output FILE"),
        ("- --resume --output o.csv", "not -"),
    ],
)
def test_what_cannot_be_resumed_is_told(cli, numbers, given, message):
    np.save("x.npy", np.arange(3))
    ran = cli("run", *given.split(), "--devices", "sim:0.001")
    assert ran.status == 2
    assert message in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_random_moments_the_file_ends_complete(suffix):
    program = Path(__file__).with_name("kill_resume.py")
    options = ["--kills", "4", "--tasks", "600", "--suffix", suffix]
    ran = subprocess.run([sys.executable, program, *options], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["kills"], found["rows"]) == (4, 600)
