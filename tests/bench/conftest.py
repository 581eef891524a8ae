"""The command in-process, and suites that take no time."""

import pytest

from asyncinfer.bench import session
from asyncinfer.bench.record import Check, Outcome, Plot, Run, Table


@pytest.fixture
def bench(cli):
    return lambda *arguments: cli("bench", *arguments)


def outcome(name, *checks):
    run = Run(
        suite=name,
        case="a case",
        policy="eft",
        devices=["one", "two"],
        tasks=10,
        window=float("inf"),
        makespan=1.5,
        utilisation={"one": 0.5, "two": 1.0},
        figures={"extra": [1, 2]},
    )
    table = Table("a table", ["name", "value"], [["a|b", "1"]], "simulated")
    plot = Plot("line", "A line", lambda axes: axes.plot([1, 2]), "a note")
    return Outcome(name, [run], [table], [plot], list(checks), ["board: not plugged in"])


@pytest.fixture
def suites(monkeypatch):
    """Suites by name, in place of the real ones: a check that fails, one that raises ..."""

    def broken(context):
        raise RuntimeError("no such\nthing")

    def interrupted(context):
        raise KeyboardInterrupt

    met, missed = Check("ours", "1.0", True), Check("ours", "2.0", False, "too slow")
    quoted = Check("theirs", "3.0", False, "not so", quoted=True)
    found = {
        "paper": lambda context: outcome("paper", met, quoted),
        "ablation": lambda context: outcome("ablation", missed),
        "scale": broken,
        "link": interrupted,
    }
    monkeypatch.setattr(session, "suite_named", found.__getitem__)
    return found
