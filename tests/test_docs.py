"""The documentation tells the truth: its Python blocks run and its links lead somewhere.

The blocks of a page run in order in one namespace; ``await`` may stand outside a function. A block
that cannot run begins with ``# not run: `` and the reason.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")


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
