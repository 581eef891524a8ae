"""The blocks of ``docs/bring-your-own-model.md`` that need packages of the zoo's environment.

    python tests/zoo/page.py

Each runs by itself; ``await`` may stand outside a function. The exit status is 1 if one failed.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import traceback
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-model.md"
#: a block for this environment, with its heading
BLOCK = re.compile(
    r"^## ([^\n]*)$(?:(?!^## ).)*?^```python\n(# not run: here.*?)^```$", re.MULTILINE | re.DOTALL
)


def main() -> int:
    """Run them all; the exit status."""
    blocks = BLOCK.findall(PAGE.read_text())
    failed = [heading for heading, source in blocks if not runs(heading, source)]
    print(f"blocks {len(blocks)} failed {len(failed)}")
    return 1 if failed or not blocks else 0


def runs(heading: str, source: str) -> bool:
    print(f"-- {heading}", flush=True)
    code = compile(source, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        outcome = eval(code, {"__name__": "__main__"})  # noqa: S307  # our own documentation
        if inspect.iscoroutine(outcome):
            asyncio.run(outcome)
    except Exception:
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
