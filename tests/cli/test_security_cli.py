"""The commands that take a config run its code only with --allow-code."""

import sys

import pytest

CONFIG = """
[[device]]
driver = "torch"
name = "x"

[device.options]
model = "tiny"
preprocess = "gated_steps:before"
"""

STEPS = """
open("imported", "w").close()
before = lambda item: item if isinstance(item, int) else item.fetch()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a module that says when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "gated_steps", raising=False)
    (tmp_path / "gated_steps.py").write_text(STEPS)
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("command", ["run", "serve", "devices", "bench"])
def test_code_is_refused_before_anything_is_done(cli, tiny, here, command):
    ran = cli(command, "--config", "c.toml")
    assert ran.status == 2
    assert "c.toml: [[device]] 1 'x', options: 'preprocess' names what can run code" in ran.err
    assert "--allow-code" in ran.err
    assert not (here / "imported").exists()


def test_code_that_is_allowed_is_run(cli, tiny, here):
    ran = cli("run", "--config", "c.toml", "--allow-code", "--json")
    assert (ran.status, ran.json["accuracy"]) == (0, 1.0)
    assert (here / "imported").exists()


def test_modules_here_are_found_only_if_one_is_named(cli, tiny, here):
    assert cli("run", "--model", "tiny", "--devices", "cpu", "--json").status == 0
    assert str(here) not in sys.path
    ran = cli(
        "run", "--model", "tiny", "--devices", "cpu", "--preprocess", "gated_steps:before", "--json"
    )
    assert ran.status == 0
    assert (here / "imported").exists()
