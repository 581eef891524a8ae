"""``asyncinfer bench``: what it writes, and its exit status, whatever the suites do."""

import csv
import json

import pytest

from asyncinfer.bench.rows import COLUMNS
from asyncinfer.bench.suite import SUITES

PROMISED = [
    *(
        "suite",
        "case",
        "policy",
        "devices",
        "tasks",
        "window",
        "queue_size",
        "noise",
        "seed",
        "run",
    ),
    *("makespan", "optimum", "ratio", "throughput"),
    *("latency_mean", "latency_p50", "latency_p95", "latency_p99", "hold_mean", "hold_p95"),
    *("utilisation", "utilisation_mean", "max_reorder", "idle_seconds", "peak_rss", "figures"),
]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_one_row_a_run(bench, suites, tmp_path):
    path = tmp_path / "rows.csv"
    assert bench("--output", path).status == 0
    (row,) = read(path)
    assert list(row) == list(COLUMNS) == PROMISED
    assert (row["suite"], row["case"], row["devices"]) == ("paper", "a case", "one;two")
    assert (row["window"], row["makespan"], row["ratio"]) == ("inf", "1.5", "")
    assert json.loads(row["utilisation"]) == {"one": 0.5, "two": 1.0}
    assert json.loads(row["figures"]) == {"extra": [1, 2]}


def test_json_is_one_object(bench, suites):
    facts = bench("--json", "--seed", 7, "--runs", 2, "--devices", "sim:1", "sim:2").json
    assert {"machine", "versions", "threads", "date", "command", "met"} <= facts.keys()
    assert (facts["seed"], facts["runs"], facts["met"]) == (7, 2, True)
    assert "--devices sim:1 sim:2" in facts["command"]
    assert facts["machine"]["cores"] >= 1
    assert facts["versions"]["asyncinfer"]
    (suite,) = facts["suites"]
    assert {"tables", "checks", "skipped", "runs", "error"} <= suite.keys()
    assert suite["plots"] == ["line"]
    assert [check["quoted"] for check in suite["checks"]] == [False, True]


def test_a_missed_check_fails_but_a_quoted_one_does_not(bench, suites):
    assert bench("--suite", "paper").status == 0
    ran = bench("--suite", "ablation")
    assert ran.status == 1
    assert "NOT MET  ours: 2.0 (too slow)" in ran.out


def test_a_suite_that_raises_does_not_stop_the_others(bench, suites, tmp_path):
    path = tmp_path / "rows.csv"
    ran = bench("--suite", "scale", "paper", "--output", path, "--json")
    assert ran.status == 1
    assert ran.error.endswith("suite scale: RuntimeError: no such thing")
    assert [suite["error"] for suite in ran.json["suites"]] == ["RuntimeError: no such thing", ""]
    assert [row["suite"] for row in read(path)] == ["paper"]


def test_an_interrupt_keeps_the_rows(bench, suites, tmp_path):
    path = tmp_path / "rows.csv"
    assert bench("--suite", "paper", "link", "--output", path).status == 130
    assert [row["suite"] for row in read(path)] == ["paper"]


def test_report_and_plots(bench, suites, tmp_path):
    report = tmp_path / "report.md"
    plots = tmp_path / "pictures"
    arguments = ["--suite", "paper", "ablation", "--report", report, "--plots", plots]
    assert bench(*arguments).status == 1
    text = report.read_text(encoding="utf-8")
    assert "asyncinfer bench --suite paper ablation --runs 5 --seed 42" in text
    for part in ("## paper", "### a table", "a&#124;b", "**not met**", "quoted; not so", "skipped"):
        assert part in text
    assert "![A line](pictures/paper-line.svg)" in text
    assert str(tmp_path) not in text
    assert (plots / "ablation-line.svg").read_text().lstrip().startswith("<?xml")


def test_a_report_brings_its_plots(bench, suites, tmp_path):
    bench("--report", tmp_path / "own.md", "--plot-format", "png")
    assert (tmp_path / "own-plots" / "paper-line.png").read_bytes().startswith(b"\x89PNG")


def test_people_see_tables_checks_and_what_was_skipped(bench, suites):
    ran = bench()
    for part in ("a table", "met      ours: 1.0", "quoted claim: theirs", "board: not plugged in"):
        assert part in ran.out
    assert "paper: begins" in ran.err


def test_all_suites_are_run_once(bench, suites, monkeypatch):
    for name in SUITES:
        suites[name] = suites["paper"]
    facts = bench("--suite", "all", "paper", "--json").json
    assert len(facts["suites"]) == len(SUITES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--suite speed", "unknown suite 'speed': choose one of paper"),
        ("--devices toaster", "unknown device 'toaster'"),
        ("--output rows.txt", "--output rows.txt: its suffix must be .csv"),
        ("--report report.html", "--report report.html: its suffix must be .md"),
        ("--output no/such/rows.csv", "no such folder: no/such"),
        ("--plots x --plot-format bmp", "unknown plot format 'bmp': choose one of svg, png"),
        ("--runs 0", "--runs"),
    ],
)
def test_bad_requests(bench, suites, arguments, message):
    ran = bench(*arguments.split())
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.error
