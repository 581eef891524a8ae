"""``asyncinfer demo``: the real models, and what it does when something is wrong."""

import pytest

from asyncinfer.cli import demo, demo_turns
from asyncinfer.cli.demo_stage import Stage
from asyncinfer.cli.demo_summary import verdict


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
        worked = [device for device in board["devices"] if device["tasks"]]  # one may rest
        assert all(device["accuracy"] > 0.95 for device in worked)


@pytest.fixture
def small(monkeypatch, tiny):
    """A demo over the tiny model, which needs no torch."""
    stage = Stage.of("numbers", "tiny", 2)
    stage.targets = None
    last = Stage.of("numbers", "tiny", 1)
    stages = {"efficientnet_lite0": stage, "digits": last}
    for name in ("LEAST", "MOST", "CALM", "LEFT_BEHIND"):
        monkeypatch.setattr(demo_turns, name, 0.01)
    monkeypatch.setattr("asyncinfer.cli.demo_stage.BATCHES", {"tiny": (4, 1, 1)})
    monkeypatch.setattr(
        demo.Stage, "of", classmethod(lambda cls, title, name, rounds, folder=None: stages[name])
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
    assert "the best single device (" in ran.out
    assert ran.out.count("n3  ") == 1  # however often it was shown to the devices
    assert "60 tasks, all in order: yes" in ran.out
    assert "digits right: 100.00%" in ran.out
    assert "raspberry_pi (stand-in)" in ran.out
    assert "cpu-batching alone: " in ran.err


def test_json(cli, small, tmp_path):
    facts = cli("demo", "--output", tmp_path / "x.svg", "--json").json
    assert facts["tasks"] == 60
    names = ["cpu-batching", "cpu", "raspberry_pi (stand-in)"]
    assert [device["name"] for device in facts["devices"]] == names
    for stage in facts["stages"]:
        assert len(stage["speedup_in_turns"]) == demo_turns.TURNS
        assert stage["speedup"] == sorted(stage["speedup_in_turns"])[demo_turns.TURNS // 2]
    assert facts["speedup"] == pytest.approx(facts["throughput"] / facts["best_single_throughput"])


def found(turns, *, tasks=(60, 40, 0), rests=(None, None, None)):
    names = ["a", "b", "c"]
    return {
        "tasks": sum(tasks),
        "throughput": 50.0,
        "best_single": "a",
        "best_single_throughput": 40.0,
        "speedup": sorted(turns)[len(turns) // 2],
        "speedup_in_turns": turns,
        "devices": [
            {"name": name, "tasks": count, "rests": reason}
            for name, count, reason in zip(names, tasks, rests, strict=True)
        ],
    }


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        (
            found([1.2, 1.25, 1.3]),
            [
                (
                    "50 tasks/s together, 1.25 times the best single device (a, 40); 1.20 to 1.30 "
                    "in 3 turns"
                ),
                "  c rests: the others are done sooner with what is there",
            ],
        ),
        (
            found([0.9, 0.97, 1.1], rests=(None, None, "10 tasks/s with it, 50 without")),
            [
                (
                    "50 tasks/s together, as fast as the best single device (a, 40): 0.97 times; "
                    "0.90 to 1.10 in 3 turns"
                ),
                "  c rests: 10 tasks/s with it, 50 without",
            ],
        ),
        (
            found([0.9, 0.97, 1.1], tasks=(99, 1, 0), rests=(None, "b's reason", "c's")),
            [
                (
                    "50 tasks/s together, as fast as the best single device (a, 40), which does it "
                    "alone:"
                ),
                "  1.00 times, within what the turns tell: 0.97, 0.90 to 1.10 in 3 turns",
                "  b rests: b's reason",
                "  c rests: c's",
            ],
        ),
        (
            found([0.9, 0.93, 0.95], tasks=(100, 0, 0), rests=(None, "b's reason", "c's")),
            [
                (
                    "50 tasks/s together, 0.93 times the best single device (a, 40); 0.90 to 0.95 "
                    "in 3 turns"
                ),
                "  b rests: b's reason",
                "  c rests: c's",
            ],
        ),
    ],
    ids=["faster", "as fast", "the same", "slower, though the same"],
)
def test_the_verdict_says_what_the_turns_tell(facts, lines):
    assert list(verdict(facts))[: len(lines)] == lines
    assert ("Slower" in "".join(verdict(facts))) == (max(facts["speedup_in_turns"]) < 1)


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
