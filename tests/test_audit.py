"""What `make audit` makes of what pip-audit says."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="no checkout: CI is not here")


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name, *found, **more):
    return {"name": name, "version": "1.0", "vulns": list(found), **more}


def report(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


def test_no_vulnerability_is_a_success(audit):
    status, lines = audit.verdict(report(package("a"), package("b")), "")
    assert (status, lines) == (0, ["2 packages audited, 0 with known vulnerabilities"])


def test_a_vulnerability_is_named(audit):
    found = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}
    unfixed = {"id": "GHSA-2", "fix_versions": []}
    status, lines = audit.verdict(report(package("a", found, unfixed), package("b")), "")
    assert status == 1
    assert lines == [
        "a 1.0: PYSEC-1, fixed in 1.1, 2.0",
        "a 1.0: GHSA-2, fixed in no version yet",
        "2 packages audited, 1 with known vulnerabilities",
    ]


def test_what_the_service_does_not_know_is_said(audit):
    skipped = {"name": "own", "skip_reason": "not on PyPI"}
    status, lines = audit.verdict(report(package("a"), skipped), "")
    assert (status, lines[0]) == (0, "own could not be audited: not on PyPI")


@pytest.mark.parametrize(
    ("out", "errors", "why"),
    [
        ("", "Traceback:\n  x\nConnectionError: no route\n", "ConnectionError: no route"),
        ("", "", "pip-audit said nothing"),
        ("[]", "odd", "odd"),
        (report({"name": "own", "skip_reason": "?"}), "", "no package is known to the service"),
    ],
)
def test_no_answer_is_neither_good_nor_bad(audit, out, errors, why):
    assert audit.verdict(out, errors) == (3, [f"could not be audited: {why}"])


def test_a_service_that_never_answers_is_given_up(audit, monkeypatch, capsys):
    def run(*command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main() == 3
    assert capsys.readouterr().out == "could not be audited: no answer within 300 s\n"


def test_every_ignored_security_rule_says_why():
    """A ``noqa`` of a rule of bandit's is followed by the reason."""
    bare = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("asyncinfer", "drivers", "examples", ".ci")
        for file in (ROOT / folder).rglob("*.py")
        for line in file.read_text().splitlines()
        if re.search(r"# noqa: [\w, ]*\bS\d+\s*$", line)
    ]
    assert bare == []
