"""The wheel, installed alone in a fresh environment, works from an empty folder."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: what the core needs: its one dependency, and that one's own
NEEDED = ("anyio", "idna", "typing_extensions")

Run = Callable[..., subprocess.CompletedProcess[str]]


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by hatchling from this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    built = call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fresh interpreter with the wheel and what it needs, run in an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    executable = folder / "venv/bin/python"
    (site,) = folder.glob("venv/lib/python*/site-packages")
    for needed in NEEDED:
        link_distribution(needed, site)
    pip = (sys.executable, "-m", "pip", "--python", executable, "install", "--quiet")
    installed = call(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    empty = folder / "empty"
    empty.mkdir()
    return lambda *arguments: call(executable, *arguments, cwd=empty)


def link_distribution(name: str, site: Path) -> None:
    """Put an installed distribution's modules into ``site`` without asking a package index."""
    distribution = importlib.metadata.distribution(name)
    for entry in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
        if entry != "__pycache__":
            (site / entry).symlink_to(distribution.locate_file(entry))


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"asyncinfer", "asyncinfer_drivers", info}
    assert {
        "asyncinfer/py.typed",
        "asyncinfer_drivers/py.typed",
        f"{info}/licenses/LICENSE",
    } <= set(names)


def test_imports_alone_and_loads_nothing_heavy(python: Run) -> None:
    done = python(
        "-c",
        "import sys, asyncinfer, asyncinfer_drivers, asyncinfer.testing\n"
        "heavy = {'torch', 'numpy', 'serial', 'httpx', 'typer', 'rich', 'uvloop'}\n"
        "print(sorted(heavy & set(sys.modules)), asyncinfer.__file__)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] ")
    assert "site-packages" in done.stdout


def test_core_imports_nothing_heavy_where_it_is_installed() -> None:
    heavy = "{'torch', 'numpy', 'serial', 'httpx', 'typer', 'rich', 'uvloop'}"
    code = f"import sys, asyncinfer, asyncinfer.testing; print(sorted({heavy} & set(sys.modules)))"
    done = call(sys.executable, "-c", code, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_streams_from_an_empty_folder(python: Run) -> None:
    done = python(
        "-c",
        "import asyncio\n"
        "from asyncinfer import Dispatcher\n"
        "from asyncinfer.testing import SimulatedDriver, run_virtual\n"
        "async def main():\n"
        "    async with Dispatcher([SimulatedDriver('one', 0.1)]) as dispatcher:\n"
        "        return [x async for x in dispatcher.stream(range(3))]\n"
        "print(run_virtual(main()))",
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")


def test_command_line_says_what_is_missing(python: Run) -> None:
    done = python("-m", "asyncinfer", "--help")
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "asyncinfer[cli]" in done.stderr


def test_command_line_helps_where_its_extra_is_installed(tmp_path: Path) -> None:
    done = call(sys.executable, "-m", "asyncinfer", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout


@pytest.mark.parametrize("group", PROJECT["entry-points"])
def test_entry_points_resolve(group: str) -> None:
    points = importlib.metadata.entry_points(group=group)
    ours = {point.name: point.load() for point in points if point.dist.name == PROJECT["name"]}
    assert set(ours) == set(PROJECT["entry-points"][group])


def test_the_version_is_written_once() -> None:
    version = PROJECT["version"]
    assert importlib.metadata.version(PROJECT["name"]) == version
    sources = [*ROOT.glob("asyncinfer/**/*.py"), *ROOT.glob("drivers/**/*.py")]
    assert [file for file in sources if f'"{version}"' in file.read_text()] == []
