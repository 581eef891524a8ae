"""The suites ``paper``, ``ablation`` and ``scale`` in small."""

import pytest

from asyncinfer.bench.report import save_plots
from asyncinfer.bench.simulated import ablation, named, paper, scale
from asyncinfer.bench.suite import Context
from asyncinfer.config import parse
from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer.testing import SimulatedDriver


def titles(outcome):
    return {table.title for table in outcome.tables}


def complete(outcome, folder):
    assert outcome.runs
    for table in outcome.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert table.note
    assert len(save_plots([outcome], folder, "png")) == len(outcome.plots)
    assert all(check.measured for check in outcome.checks)


def test_paper(tmp_path):
    outcome = paper.run(Context(["sim:0.002", "sim:0.05"], runs=1, short=True))
    complete(outcome, tmp_path)
    assert {"paper's 8: 1000 tasks, window 1024", "named devices"} <= titles(outcome)
    assert {run.policy for run in outcome.runs} == {"eft", "greedy", "static", "sync", "serial"}
    assert {run.figures["clock"] for run in outcome.runs} == {"virtual", "real"}
    assert outcome.met
    quoted = {check.claim: check.met for check in outcome.checks if check.quoted}
    assert quoted["up to 10x serial on 8 unequal devices"]
    assert not quoted["mean latency of about 50 ms"]
    assert not quoted["the pull is optimal"]


def test_paper_without_a_device_that_can_be_opened(monkeypatch):
    def nothing(device):
        raise ConfigError("needs torch")

    monkeypatch.setattr(named, "_model", nothing)
    found, skipped = named.timed(Context(), 1)
    assert found == []
    assert [line.partition(":")[0] for line in skipped] == list(named.NAMES)
    assert "needs torch" in skipped[0]


@pytest.mark.parametrize("error", [DeviceLost("board", "is gone"), None])
def test_a_device_that_fails_is_closed_and_skipped(monkeypatch, error):
    class Board(SimulatedDriver):
        async def calibrate(self):
            assert self.is_open
            if error:
                raise error

    board = Board("board", 0.1)
    monkeypatch.setattr(named.DeviceConfig, "build", lambda self, model: board)
    monkeypatch.setattr(named, "SimulatedDriver", type(None))
    monkeypatch.setattr(named, "_model", lambda device: None)
    found, skipped = named.timed(Context(["cpu"]), 1)
    assert (found, len(skipped)) == ([], 1)
    assert not board.is_open


def test_ablation(tmp_path):
    outcome = ablation.run(Context(short=True))
    complete(outcome, tmp_path)
    assert {"drift", "noise", "live sources", "random sets"} <= titles(outcome)
    assert {plot.name for plot in outcome.plots} >= {"hold", "heterogeneity", "throughput-far"}
    assert len([check for check in outcome.checks if not check.quoted]) >= 6
    assert outcome.met, [check for check in outcome.checks if not check.met]


def test_scale(tmp_path, monkeypatch):
    sizes = scale.Sizes((2, 20), 200, 20.0, 100, 300, 20.0)
    monkeypatch.setattr(scale, "SHORT", sizes)
    outcome = scale.run(Context(short=True))
    complete(outcome, tmp_path)
    assert [run.tasks for run in outcome.runs] == [200, 200, 100, 300]
    calls = [run.figures["calls"] for run in outcome.runs]
    assert calls[:2] == [200, 200]
    assert calls[-1] < 300 / 4, "memory is compared with tasks in batches"
    assert "tasks a call" in outcome.tables[1].note
    assert outcome.checks[1].met
    assert "cost per task at 20 devices" in outcome.checks[0].claim


def test_scale_says_what_took_too_long(monkeypatch):
    monkeypatch.setattr(scale, "SHORT", scale.Sizes((2,), 10, 1e-3, 10, 20, 1e-3))
    outcome = scale.run(Context(short=True))
    assert outcome.runs == []
    assert not any(check.met for check in outcome.checks)


def test_scale_tells_why_a_process_failed(monkeypatch):
    monkeypatch.setattr(scale, "CHILD", "asyncinfer.no_such_module")
    with pytest.raises(RuntimeError, match="No module named"):
        scale.run(Context(short=True))


def test_devices_are_those_asked_for_else_of_the_config():
    own = parse('[[device]]\ndriver = "simulated"\nname = "mine"\noptions = {service_time = 0.5}')
    names = [device.name for device in named.timed(Context(config=own), 1)[0]]
    asked = [device.name for device in named.timed(Context(["sim:1"], own), 1)[0]]
    assert (names, asked) == (["mine"], ["sim:1"])
