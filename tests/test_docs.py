"""The documentation tells the truth: its Python blocks run and its links lead somewhere.

The blocks of a page run in order in one namespace; ``await`` may stand outside a function. A block
that cannot run begins with ``# not run: `` and the reason.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any

import griffe
import pytest

import asyncinfer
from asyncinfer.registry import DRIVERS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
#: what the reference shows: a class or a module, and which of the module's names if not all
SHOWN = re.compile(r"^::: ([\w.]+)(?:\n.*\bmembers: \[([\w, ]*)\])?", re.MULTILINE)


def blocks(page: Path) -> list[str]:
    """The page's runnable blocks, each moved down to its line so that tracebacks point there."""
    text = page.read_text()
    return [
        "\n" * text.count("\n", 0, block.start(1)) + block[1]
        for block in PYTHON.finditer(text)
        if not block[1].startswith("# not run: ")
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def execute(source: str, page: Path, namespace: dict[str, object]) -> None:
    code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = eval(code, namespace)  # noqa: S307  # our own documentation
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)


# silero-vad is a TorchScript file, which it loads as torch would rather have it no more
@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("page", [*filter(blocks, PAGES)], ids=name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        execute(block, page, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    targets = LINK.findall(FENCED.sub("", page.read_text()))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_fenced_properly() -> None:
    odd = [name(page) for page in PAGES if page.read_text().count("\n```") % 2]
    assert odd == []


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nimport asyncio\nx = await asyncio.sleep(0, 41)\n```\n"
        "```python\n# not run: it would fail\n1 / 0\n```\n"
        "```python\nassert x == 42\n```\n"
    )
    first, second = blocks(page)
    namespace: dict[str, object] = {}
    execute(first, page, namespace)
    with pytest.raises(AssertionError) as caught:
        execute(second, page, namespace)
    assert caught.traceback[-1].lineno + 1 == 12


def named(path: str, names: Iterable[str] = ()) -> list[tuple[str, Any]]:
    """The module's public names, or those given, and what they stand for."""
    module = importlib.import_module(path)
    return [(name, getattr(module, name)) for name in names or getattr(module, "__all__", ())]


def public_names() -> list[tuple[str, Any]]:
    """All of the core's modules, programs apart, and of the modules of registered drivers."""
    core = {module.name for module in pkgutil.iter_modules(asyncinfer.__path__)}
    public = {f"asyncinfer.{name}" for name in core if name[0] != "_"}
    drivers = {entry.module for entry in entry_points(group=DRIVERS)}
    return list(chain.from_iterable(map(named, {"asyncinfer"} | public | drivers)))


def shown_names() -> list[tuple[str, Any]]:
    """All that the pages of the reference ask for."""
    found = []
    for page in ROOT.glob("docs/reference/*.md"):
        for path, members in SHOWN.findall(page.read_text()):
            module, _, name = path.rpartition(".")
            if name[0].isupper():
                found += named(module, [name])
            else:
                found += named(path, re.findall(r"\w+", members))
    return found


def test_the_reference_has_every_public_name() -> None:
    shown = {(name, id(value)) for name, value in shown_names()}  # wherever it is imported from
    public = public_names()
    assert {"Dispatcher", "Event", "Policy", "TorchDriver"} <= {name for name, _ in public}
    assert [name for name, value in public if (name, id(value)) not in shown] == []


def test_every_field_in_the_reference_says_what_it_means() -> None:
    loader = griffe.GriffeLoader(
        search_paths=[ROOT, ROOT / "drivers"], extensions=griffe.load_extensions("griffe_sphinx")
    )
    found = {package: loader.load(package) for package in ("asyncinfer", "asyncinfer_drivers")}
    silent = []
    for _, value in shown_names():
        if isinstance(value, type):
            package, *path = f"{value.__module__}.{value.__qualname__}".split(".")
            fields = found[package][path].attributes.values()
            public = [field for field in fields if field.annotation and field.name[0] != "_"]
            silent += [field.path for field in public if not field.has_docstring]
    assert silent == []
