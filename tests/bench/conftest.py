"""The command in-process, and suites that take no time."""

import json
from dataclasses import dataclass

import pytest

from asyncinfer.__main__ import main
from asyncinfer.bench import session
from asyncinfer.bench.record import Check, Outcome, Plot, Run, Table


@dataclass
class Ran:
    """What one command did."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def error(self):
        """The one line that says what went wrong."""
        (line,) = [line for line in self.err.splitlines() if "error:" in line]
        assert "Traceback" not in self.err
        return line


@pytest.fixture
def bench(capfd):
    def run(*arguments):
        status = main(["bench", *map(str, arguments)])
        return Ran(status, *capfd.readouterr())

    return run


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
