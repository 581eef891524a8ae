"""``asyncinfer`` and ``python -m asyncinfer``: the command line, if its extra is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        from asyncinfer.cli.app import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        message = f"the command line needs {error.name}: pip install 'asyncinfer[cli]'"
        print(f"asyncinfer: error: {message}", file=sys.stderr)
        return 2
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
