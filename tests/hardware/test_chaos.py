"""A short run of some faults on real devices: nothing is lost, and nothing is left behind."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from chaos_jobs import before_us

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KINDS = ("worker_killed", "board_reset", "line_corrupted", "network_cut")


def processes_with(mark):
    """The commands that have ``mark`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_short_run_loses_nothing_and_leaves_nothing(firmware, tmp_path):
    pytest.importorskip("ray")
    mark = uuid.uuid4().hex
    command = [sys.executable, Path(__file__).with_name("chaos.py"), "--minutes", "0.15"]
    ran = subprocess.run(
        [*command, "--ahead", "1024", "--kinds", *KINDS],
        capture_output=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "CHAOS_MARK": mark},
        check=False,
    )
    assert ran.stdout, ran.stderr.decode()
    found = json.loads(ran.stdout)
    bad = {kind: found[kind] for kind in ("lost", "doubled", "misordered", "wrong", "failed")}
    assert bad == dict.fromkeys(bad, 0), ran.stderr.decode()
    assert found["problems"] == []
    assert found["tasks"] > 100
    assert sum(found["faults"].values()) > 1
    assert list(tmp_path.iterdir()) == []
    assert processes_with(mark) == []


@pytest.mark.parametrize(
    ("said", "started"),
    [
        ("Fatal Python error: init_sys_streams: can't initialize sys standard streams", True),
        ("Could not import runpy module\nTraceback ...\n  File 'abc.py'\nKeyboardInterrupt", True),
        ("asyncinfer: error: RuntimeError: Cannot close a running event loop", False),
        ("  File '/x/asyncinfer/cli/app.py', line 1, in main\nKeyboardInterrupt", False),
        ("", False),
    ],
)
def test_what_an_interrupted_python_says_before_it_runs_us(said, started):
    assert before_us(said) is started
