"""``asyncinfer run``: inputs, devices, rows in order, and what goes wrong."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys

import pytest

from asyncinfer.cli import inputs
from asyncinfer.testing import SimulatedDriver


def test_a_built_in_model_brings_its_inputs(cli, tiny):
    ran = cli("run", "--model", "tiny", "--devices", "cpu", "cpu", "raspberry_pi")
    assert ran.status == 0
    assert [row["index"] for row in ran.rows] == list(range(20))
    assert [row["output"] for row in ran.rows] == [2 * i for i in range(20)]
    assert [row["input"] for row in ran.rows][:2] == ["n0", "n1"]
    assert "raspberry_pi: stand-in: a server in a second process" in ran.err
    assert "20 tasks in" in ran.err
    assert "100.00% right" in ran.err


def test_json_is_the_summary_alone(cli, tiny):
    facts = cli("run", "--model", "tiny", "--devices", "cpu", "cpu", "--json").json
    assert facts["tasks"] == 20
    assert facts["accuracy"] == 1.0
    assert facts["in_order"] is True
    assert facts["interrupted"] is False
    assert [device["name"] for device in facts["devices"]] == ["cpu", "cpu-2"]
    assert sum(device["tasks"] for device in facts["devices"]) == 20
    assert all(0 <= device["utilisation"] <= 1 for device in facts["devices"])


@pytest.mark.parametrize("wait_for", [None, "first", "all"])
def test_a_device_that_opens_slowly_holds_up_nobody(cli, tiny, monkeypatch, wait_for):
    opened = []

    async def open_slowly(self):
        if self.name == "cpu-2":
            await asyncio.sleep(3600 if wait_for != "all" else 0.1)
        opened.append(self.name)
        self.is_open = True

    monkeypatch.setattr(SimulatedDriver, "open", open_slowly)
    options = ["--wait-for", wait_for] if wait_for else []
    facts = cli("run", "--model", "tiny", "--devices", "cpu", "cpu", *options, "--json").json
    assert (facts["tasks"], facts["in_order"], facts["accuracy"]) == (20, True, 1.0)
    if wait_for == "all":
        assert opened == ["cpu", "cpu-2"]
    else:
        assert [device["tasks"] for device in facts["devices"]] == [20, 0]
        assert facts["troubles"]["cpu-2"].startswith("opening for ")


def test_a_board_that_does_not_open_is_told_beside_the_results(cli, tiny, monkeypatch):
    """What turns out wrong at once, as it may on a quick host, would end the run instead."""
    pytest.importorskip("serial")
    pytest.importorskip("torch")
    monkeypatch.setattr("asyncinfer._core.devices.start.AT_ONCE", 0.0)
    ran = cli("run", "--model", "tiny", "--devices", "cpu", "cortex_m4")
    assert [row["output"] for row in ran.rows] == [2 * i for i in range(20)]
    assert (ran.status, ran.err.count("20 tasks in")) == (0, 1)
    assert "cortex_m4: " in ran.err
    assert "bit-exact" not in ran.err


def test_a_bad_file_is_one_row_and_the_rest_intact(cli, tiny, numbers):
    ran = cli("run", "--model", "tiny", "--devices", "cpu", "--inputs", "?.txt", "gone.txt")
    assert ran.status == 1
    assert [row["output"] for row in ran.rows] == [2, None, 6, None]
    assert ran.rows[1]["error"] == "b.txt: no number"
    assert ran.rows[3]["error"] == "gone.txt: No such file or directory"
    assert "4 tasks" in ran.err
    assert "2 failed" in ran.err


def test_csv(cli, tiny, numbers):
    ran = cli("run", "a.txt", "b.txt", "--model", "tiny", "--devices", "cpu", "--output", "o.csv")
    assert (ran.status, ran.out) == (1, "")
    with (numbers / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == ["a.txt", "b.txt"]
    assert [row["output"] for row in rows] == ["2", ""]
    assert [row["error"] for row in rows] == ["", "b.txt: no number"]


def test_json_lines_beside_a_summary(cli, tiny, numbers):
    given = ["run", "a.txt", "c.txt", "--model", "tiny", "--devices", "cpu"]
    ran = cli(*given, "--output", "o.jsonl", "--json")
    assert ran.json["tasks"] == 2
    lines = (numbers / "o.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == [2, 6]


def test_rows_of_an_array(cli, tiny, numbers):
    numpy = pytest.importorskip("numpy")
    numpy.save(numbers / "rows.npy", numpy.arange(6).reshape(3, 2))
    ran = cli("run", "--model", "tiny", "--devices", "cpu", "--inputs", "rows.npy")
    assert [row["output"] for row in ran.rows] == [[0, 2], [4, 6], [8, 10]]
    assert ran.rows[2]["input"] == "rows.npy[2]"


def test_several_kinds_of_inputs_in_order(cli, tiny, numbers):
    ran = cli("run", "a.txt", "tiny", "c.txt", "--model", "tiny", "--devices", "cpu", "cpu")
    assert [row["output"] for row in ran.rows] == [2, *range(0, 40, 2), 6]


def test_a_list_on_standard_input(cli, tiny, numbers, monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b"c.txt\n\nb.txt\r\na.txt")
    os.close(writing)
    monkeypatch.setattr(inputs, "Lines", lambda descriptor, lines=inputs.Lines: lines(reading))
    ran = cli("run", "--model", "tiny", "--devices", "cpu", "--inputs", "-")
    os.close(reading)
    assert [row["output"] for row in ran.rows] == [6, None, 2]
    assert ran.status == 1


async def test_lines_are_joined_across_reads():
    reading, writing = os.pipe()
    lines = inputs.Lines(reading)
    os.write(writing, b"one\ntw")
    assert (await anext(lines))[0] == "one"
    os.write(writing, b"o\nthree")
    os.close(writing)
    assert [name async for name, _ in lines] == ["two", "three"]
    os.close(reading)


def test_config_and_options(cli, tiny, numbers):
    (numbers / "devices.toml").write_text(
        "[dispatcher]\npolicy = 'greedy'\nwindow = 4\n"
        "[[device]]\ndriver = 'torch'\nname = 'fast'\n[device.options]\nmodel = 'tiny'\n"
        "[[device]]\ndriver = 'torch'\nname = 'slow'\n[device.options]\nslowdown = 9.0\n"
    )
    both = cli("run", "--config", "devices.toml", "--json").json
    assert [device["name"] for device in both["devices"]] == ["fast", "slow"]
    assert both["model"] == "tiny"
    one = cli("run", "--config", "devices.toml", "--devices", "fast", "--window", 2, "--json").json
    assert [device["name"] for device in one["devices"]] == ["fast"]


def test_steps_of_ones_own(cli, tiny, numbers):
    (numbers / "steps_after.py").write_text("def after(x): return {'value': x, 'set': {1}}\n")
    given = ["run", "a.txt", "--model", "tiny", "--devices", "cpu"]
    ran = cli(*given, "--postprocess", "steps_after:after")
    assert ran.rows, (ran.err, ran)
    assert ran.rows[0]["output"] == {"value": 2, "set": [1]}


def test_simulated_devices_run_no_model(cli, numbers):
    ran = cli("run", "a.txt", "--devices", "sim:0.001")
    assert ran.rows[0]["output"] == "a.txt"
    assert "sim:0.001: runs no model" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model tiny --devices cpuu", "unknown device 'cpuu'; did you mean 'cpu'?"),
        ("--model tiny --devices cpu a.txt", "put inputs before --devices, or after --"),
        ("--model tinny --devices cpu", "unknown model 'tinny'; did you mean 'tiny'?"),
        ("--devices cpu a.txt --", "unknown device 'a.txt'"),
        ("a.txt --devices cpu", "missing a required argument: 'model'; give --model"),
        ("--devices sim:1", "no inputs: name files"),
        ("--devices sim:1 --wait-for any a.txt", "wait_for must be 'first' or 'all', not 'any'"),
        ("a.txt --devices sim:1 --inputs -", "- (standard input) cannot be mixed"),
        ("--model tiny --devices cpu --inputs *.png", "no file matches '*.png'"),
        ("--model tiny --devices cpu --inputs tinny", "no file or input set 'tinny'; did you mean"),
        ("--model tiny --devices cpu --inputs bad.npy", "bad.npy: cannot be read as a .npy array"),
        ("--model tiny --devices cpu --output x.txt", "its suffix must be one of .csv"),
        ("--model tiny --devices cpu --output no/x.csv", "No such file or directory"),
        ("--model tiny --devices cpu --policy best", "unknown policy 'best'"),
        ("--model tiny --devices cpu --config no.toml", "cannot read config no.toml"),
        ("--model tiny --devices cpu --preprocess nowhere", "cannot import 'nowhere'"),
        ("--model tiny --config typo.toml", "unknown key 'max_bach'; did you mean 'max_batch'?"),
    ],
)
def test_bad_requests(cli, tiny, numbers, arguments, message):
    (numbers / "bad.npy").write_text("no array")
    (numbers / "typo.toml").write_text(
        "[[device]]\ndriver = 'torch'\n[device.options]\nmax_bach = 3\n"
    )
    ran = cli("run", *arguments.split())
    assert ran.status in (1, 2)
    assert ran.out == ""
    assert message in ran.error


def test_a_model_that_raises_fails_its_tasks_alone(cli, tiny):
    tiny.build = lambda: lambda x: 1 // (x - 3)
    ran = cli("run", "--model", "tiny", "--devices", "cpu")
    assert ran.status == 1
    failed = [row["index"] for row in ran.rows if row["error"]]
    assert failed == [3]
    assert "division" in ran.rows[3]["error"]


def heed_ctrl_c():
    """What starts the tests in the background may have it ignored, which is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_with_what_was_done(tmp_path):
    files = [tmp_path / f"{i}.txt" for i in range(400)]
    for file in files:
        file.touch()
    command = [sys.executable, "-m", "asyncinfer", "run", "--devices", "sim:0.05", "--", *files]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as running:
        first = json.loads(running.stdout.readline())
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    rows = [first, *map(json.loads, out.splitlines())]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert len(rows) < 400
    assert f"{len(rows)} tasks in" in err
    assert "interrupted" in err
    assert "Traceback" not in err


def test_ctrl_c_while_waiting_for_standard_input():
    command = [sys.executable, "-m", "asyncinfer", "run", "--devices", "sim:0.001", "-"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as running:
        running.stdin.write("one\n")
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["input"] == "one"
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        assert "1 tasks in" in running.stderr.read()
