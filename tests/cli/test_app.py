"""The program itself: help, errors on one line, exit statuses."""

import asyncio
import subprocess
import sys
import threading

import pytest

from asyncinfer.cli import app, tools
from asyncinfer.cli.arguments import expand
from asyncinfer.errors import ConfigError
from asyncinfer.registry import needed_for


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("run --devices a b --json", "run --devices a --devices b --json"),
        ("run --devices a --devices b c", "run --devices a --devices b --devices c"),
        ("run --devices=a b", "run --devices=a b"),
        ("run --devices a b -- x y", "run --devices a --devices b -- x y"),
        ("run --inputs - --json", "run --inputs - --json"),
        ("run x --inputs a b", "run x --inputs a --inputs b"),
        (
            "s --service-times .1 -1 -.5",
            "s --service-times .1 --service-times -1 --service-times -.5",
        ),
        ("run --devices a b -", "run --devices a --devices b -"),
        ("run --devices --json", "run --devices --json"),
        ("run --model a b", "run --model a b"),
    ],
)
def test_options_with_several_values(given, expanded):
    assert expand(given.split()) == expanded.split()


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(cli, arguments):
    ran = cli(*arguments)
    assert ran.status == 0
    for command in ("demo", "run", "devices", "simulate"):
        assert f"  {command} " in ran.out


def test_version(cli):
    assert cli("--version").out.startswith("asyncinfer ")


@pytest.mark.parametrize("command", ["demo", "run", "devices", "simulate"])
def test_every_command_has_help_and_json(cli, command):
    ran = cli(command, "--help")
    assert ran.status == 0
    assert "--json" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("simulat", "No such command 'simulat'"),
        ("simulate", "Missing option '--service-times'; see asyncinfer simulate --help"),
        ("simulate --service-times 1 --polcy eft", "No such option: --polcy"),
        ("devices extra", "unexpected extra argument"),
    ],
)
def test_wrong_command_lines(cli, arguments, message):
    ran = cli(*arguments.split())
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left"), 1, "No space left"),
        (ZeroDivisionError("by\nzero"), 1, "ZeroDivisionError: by zero; --debug shows where"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ConfigError("give more"), 2, "give more"),
    ],
)
def test_unforeseen_errors(cli, monkeypatch, error, status, message):
    def fail(arguments):
        raise error

    monkeypatch.setattr(app, "_run", fail)
    ran = cli("devices")
    assert ran.status == status
    assert message in ran.error


class Interrupted(asyncio.SelectorEventLoop):
    """Ctrl-C came where uvloop is neither running nor stopped, and can no more be closed."""

    def run_until_complete(self, future):
        future.close()
        self._thread_id = threading.get_ident()
        raise KeyboardInterrupt


@pytest.mark.parametrize("option", [(), ("--debug",)])
def test_ctrl_c_that_leaves_a_loop_which_cannot_be_closed(cli, monkeypatch, option):
    loop = Interrupted()

    def run(arguments):
        try:
            loop.run_until_complete(asyncio.sleep(0))
        finally:
            loop.close()

    monkeypatch.setattr(app, "_run", run)
    ran = cli("devices", *option)
    assert (ran.status, ran.error) == (130, "asyncinfer: error: interrupted")
    loop._thread_id = None
    loop.close()


def test_debug_shows_the_traceback(cli):
    with pytest.raises(ConfigError, match="above 0"):
        cli("simulate", "--service-times", "-1", "--debug")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(package):
    program = f"import sys; sys.modules['{package}'] = None; import asyncinfer.__main__ as m"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; sys.exit(m.main(['devices']))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"asyncinfer: error: the command line needs {package}")
    assert done.stderr.endswith(": pip install 'asyncinfer[cli]'\n")


@pytest.mark.parametrize("command", ["", "bench", "firmware", "run"])
def test_help_imports_nothing_heavy(command):
    program = (
        "import sys, asyncinfer.__main__ as m; m.main(sys.argv[1:]); "
        "sys.exit(sorted({'torch', 'numpy', 'serial', 'ray'} & set(sys.modules)))"
    )
    arguments = [*command.split(), "--help"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_imports_that_a_purpose_needs_name_their_extra():
    told = "a chart needs no_such: pip install no_such"
    with pytest.raises(ConfigError, match=told), needed_for("a chart"):
        raise ModuleNotFoundError("No module named 'no_such.part'", name="no_such.part")
    with pytest.raises(ConfigError, match="a chart: odd"), needed_for("a chart"):
        raise ModuleNotFoundError("odd")


def test_a_missing_package_names_its_extra():
    with pytest.raises(ConfigError, match="a chart needs no_such_thing: pip install no_such_thing"):
        tools.optional("no_such_thing.part", "a chart")


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "asyncinfer", "simulate", "--service-times", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("asyncinfer: error: ")
    assert done.stderr.count("\n") == 1


def test_closed_standard_output_is_no_crash():
    command = f"{sys.executable} -m asyncinfer devices | true"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
