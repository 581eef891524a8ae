"""``asyncinfer demo``: the real models, and what it does when something is wrong."""

import pytest

from asyncinfer.cli import demo
from asyncinfer.cli.demo_stage import Stage


@pytest.mark.models
@pytest.mark.slow
def test_the_demo(cli, tmp_path):
    pytest.importorskip("torch")
    picture = tmp_path / "demo.png"
    facts = cli("demo", "--rounds", 1, "--output", picture, "--json").json
    assert facts["tasks"] == 7 + 1797
    assert facts["in_order"] is True
    assert facts["accuracy"] > 0.95
    assert facts["throughput"] > 0
    assert facts["best_single_throughput"] > 0
    assert len(facts["devices"]) == 3
    assert sum(device["tasks"] for device in facts["devices"]) == facts["tasks"]
    assert all(0 <= device["utilisation"] <= 1.01 for device in facts["devices"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    board = facts["cortex_m4"]
    if "missing" not in board:
        assert board["tasks"] == sum(device["tasks"] for device in board["devices"]) == 1797
        assert board["in_order"] is board["host_exact"] is board["bit_exact"] is True
        assert all(device["accuracy"] > 0.95 for device in board["devices"])


@pytest.fixture
def small(monkeypatch, tiny):
    """A demo over the tiny model, which needs no torch."""
    stage = Stage.of("numbers", "tiny", 2)
    stage.targets = None
    last = Stage.of("numbers", "tiny", 1)
    stages = {"efficientnet_lite0": stage, "digits": last}
    monkeypatch.setattr("asyncinfer.cli.demo_stage.BATCHES", {"tiny": (4, 1, 1)})
    monkeypatch.setattr(
        demo.Stage, "of", classmethod(lambda cls, title, name, rounds: stages[name])
    )
    monkeypatch.setattr(
        demo, "_plain_loop", lambda stage: [2 * i for i in range(20)] * stage.rounds
    )
    monkeypatch.setattr(demo, "board_stage", lambda stage: {"missing": "not in this test"})
    return stages


def test_people_see_labels_tables_and_the_comparison(cli, small, tmp_path):
    ran = cli("demo", "--output", tmp_path / "x.svg")
    assert ran.status == 0
    assert "  n3               6\n" in ran.out
    assert "times the best single device" in ran.out
    assert "60 tasks, all in order: yes" in ran.out
    assert "digits right: 100.00%" in ran.out
    assert "raspberry_pi (stand-in)" in ran.out
    assert "cpu-batching alone: " in ran.err


def test_json(cli, small, tmp_path):
    facts = cli("demo", "--output", tmp_path / "x.svg", "--json").json
    assert facts["tasks"] == 60
    names = ["cpu-batching", "cpu", "raspberry_pi (stand-in)"]
    assert [device["name"] for device in facts["devices"]] == names
    assert facts["speedup"] == pytest.approx(facts["throughput"] / facts["best_single_throughput"])


@pytest.mark.parametrize("wrong", ["in_order", "host_exact", "bit_exact"])
def test_a_wrong_result_of_the_board_is_no_success(cli, small, tmp_path, monkeypatch, wrong):
    facts = {"in_order": True, "host_exact": True, "bit_exact": True, wrong: False}
    monkeypatch.setattr(demo, "board_stage", lambda stage: facts)
    ran = cli("demo", "--output", tmp_path / "x.svg", "--json")
    assert (ran.status, ran.json["in_order"]) == (1, False)


def test_a_wrong_result_is_no_success(cli, small, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_plain_loop", lambda stage: list(range(20)) * stage.rounds)
    ran = cli("demo", "--output", tmp_path / "x.svg", "--json")
    assert ran.status == 1
    assert ran.json["in_order"] is False
    assert "results differ from those of a plain loop" in ran.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output /no/such/x.png", "no such folder: /no/such"),
        ("--output x.xyz", "write a picture as .png"),
        ("--rounds 0", "--rounds"),
    ],
)
def test_bad_requests(cli, arguments, message):
    ran = cli("demo", *arguments.split())
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.error
