"""Imports point one way: the contracts hold, break where they should, and there is no circle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
DRIVERS = ROOT / "drivers/asyncinfer_drivers"

CORE = "The core imports no driver, no torch, no serial, no HTTP"
ONE_WAY = "Imports in the core point one way"
ALLOWED = "Drivers know the core's driver, errors and registry, and nothing else"
BEHIND = "What runs behind a dispatcher is imported by it alone"
ROOMS = "Tasks know no device, devices know what they run, dispatch joins them"
PRIVATE = "What is private to the drivers is imported by them alone"
NO_CIRCLE = "No circle among the parts of a package"

#: a module of the running machinery, and what a driver might want of it
INSIDE = "asyncinfer/_core/dispatch/pool.py"
WANTED = "from asyncinfer._core.dispatch.pool import Pool"


def modules(package: Path) -> list[str]:
    """The dotted names of a package's modules, itself left out."""
    files = (file.relative_to(package.parent).with_suffix("") for file in package.rglob("*.py"))
    names = (".".join(file.parts).removesuffix(".__init__") for file in files)
    return sorted(name for name in names if name != package.name)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages and the contracts, to be spoilt."""
    folder = tmp_path_factory.mktemp("tree")
    for package in (ROOT / "asyncinfer", DRIVERS):
        target = folder / package.relative_to(ROOT)
        shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def append(tree: Path) -> Iterator[Callable[[Path, str], None]]:
    """Adds a line to a file, or makes it; after the test all is as it was."""
    before: dict[Path, str | None] = {}

    def added(file: Path, line: str) -> None:
        before[file] = file.read_text() if file.exists() else None
        file.write_text(f"{before[file] or ''}\n{line}\n")

    yield added
    for file, text in before.items():
        if text is None:
            file.unlink()
        else:
            file.write_text(text)


def broken(tree: Path) -> tuple[set[str], str]:
    """Which contracts lint-imports finds broken there, and all that it says."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree}:{tree / 'drivers'}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = done.stdout.splitlines()
    found = {line.partition(" BROKEN")[0] for line in lines if " BROKEN" in line}
    assert done.returncode == bool(found), done.stdout + done.stderr
    return found, done.stdout


def test_the_contracts_hold(tree: Path) -> None:
    found, told = broken(tree)
    assert found == set(), told


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        (INSIDE, "import asyncinfer.cli.app", ONE_WAY),
        (INSIDE, "import asyncinfer.serve.run", ONE_WAY),
        (INSIDE, "import asyncinfer.bench.suite", ONE_WAY),
        (INSIDE, "import asyncinfer_drivers.worker", CORE),
        (INSIDE, "from asyncinfer_drivers.torch_host import TorchDriver", CORE),
        ("asyncinfer/_core/tasks/lane.py", "import asyncinfer._core.devices.roster", ROOMS),
        ("asyncinfer/_core/devices/device.py", "import asyncinfer._core.dispatch.pool", ROOMS),
        ("asyncinfer/cli/app.py", WANTED, BEHIND),
        ("asyncinfer/serve/core.py", "import asyncinfer_drivers.worker", CORE),
        ("asyncinfer/serve/core.py", "import asyncinfer.cli.app", ONE_WAY),
        ("asyncinfer/cli/app.py", "from asyncinfer_drivers._torch.load import load", PRIVATE),
        ("asyncinfer/bench/suite.py", "import asyncinfer_drivers.models._base", PRIVATE),
        ("asyncinfer/cli/output.py", "if TYPE_CHECKING: import asyncinfer.cli.app", NO_CIRCLE),
        ("asyncinfer/_text.py", "import asyncinfer.options", ONE_WAY),
        ("asyncinfer/newcomer.py", "", ONE_WAY),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    tree: Path, append: Callable[[Path, str], None], file: str, line: str, contract: str
) -> None:
    append(tree / file, line)
    assert contract in broken(tree)[0]


def test_no_driver_may_import_what_runs_it(tree: Path, append: Callable[[Path, str], None]) -> None:
    for file in (tree / "drivers").rglob("*.py"):
        append(file, WANTED)
    found, told = broken(tree)
    assert {ALLOWED, BEHIND} <= found
    caught = re.findall(rf"(\S+) -> {WANTED.split()[1]} \(l", told)
    assert sorted(set(caught)) == [DRIVERS.name, *modules(DRIVERS)]


def test_what_is_new_in_the_core_is_forbidden_to_drivers(
    tree: Path, append: Callable[[Path, str], None]
) -> None:
    append(tree / "asyncinfer/newcomer.py", "")
    append(tree / "drivers/asyncinfer_drivers/worker.py", "import asyncinfer.newcomer")
    assert ALLOWED in broken(tree)[0]


def test_all_that_is_private_to_drivers_is_listed() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (listed,) = (one for one in contracts["contracts"] if one["name"] == PRIVATE)
    roots = {name for name in modules(DRIVERS) if name.rpartition(".")[2].startswith("_")}
    assert sorted(name for name in roots if "._" not in name.rpartition(".")[0]) == sorted(
        listed["protected_modules"]
    )


def test_no_module_is_in_a_circle_of_imports() -> None:
    graph = grimp.build_graph("asyncinfer", "asyncinfer_drivers", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # CycleError names one
