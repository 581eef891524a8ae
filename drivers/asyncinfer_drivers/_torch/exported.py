"""``torch.export``: one at a time, and what an exported program says of the sizes that it takes."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ("EXPORTING", "size_range")

#: to be held while a module is exported: torch has one stack of modes for all threads meanwhile
EXPORTING = threading.Lock()


def size_range(size: Any, ranges: Any) -> tuple[int, int | None]:
    """The least and the largest of a size: a number, or a symbol of ``range_constraints``.

    The largest is ``None`` where there is no limit, or none is known.
    """
    if isinstance(size, int):
        return size, size
    found = ranges.get(size.node.expr)
    try:
        return max(1, int(found.lower)), int(found.upper)
    except (AttributeError, TypeError, ValueError, OverflowError):  # without a limit
        return 1, None
