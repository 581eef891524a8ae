"""How large inputs are, found without a look at what is in them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

__all__ = ("TASK_BYTES", "TINY", "size_of")

#: what each task counts besides the data in its input
TASK_BYTES = 100
#: inputs of these classes count nothing besides
TINY = frozenset((int, float, complex, bool, type(None)))
#: what an input counts that is none of those known here
UNKNOWN = 1000
#: members of a collection that are looked at: the others count as much on average
MEMBERS = 32
#: how deep collections are looked into
DEPTH = 4


def size_of(x: Any, depth: int = DEPTH) -> int:
    """Bytes of data in ``x``, more or less.

    Exact for bytes, texts, and whatever has ``nbytes``, as tensors and arrays have; mappings,
    tuples and lists count their members. Anything else counts ``UNKNOWN``.
    """
    if type(x) in TINY:
        return 0
    try:
        if isinstance(x, bytes | bytearray):
            return len(x)
        if isinstance(x, str):
            return sys.getsizeof(x)
        size = getattr(x, "nbytes", None)
        if isinstance(size, int) and size >= 0:
            return size
        if isinstance(x, Mapping):
            return _sum_of(x.values(), len(x), depth)
        if isinstance(x, tuple | list | set | frozenset):
            return _sum_of(x, len(x), depth)
        return _of_picture(x)
    except Exception:  # whatever an object of the user's does when it is asked
        return UNKNOWN


def _sum_of(members: Iterable[Any], count: int, depth: int) -> int:
    if not depth:
        return UNKNOWN
    looked = [size_of(member, depth - 1) for member in islice(members, MEMBERS)]
    if count <= MEMBERS:
        return 8 * count + sum(looked)
    return 8 * count + math.ceil(sum(looked) * count / max(1, len(looked)))


def _of_picture(x: Any) -> int:
    """A picture as Pillow has it: a byte for each of its bands, once it is loaded."""
    bands = getattr(x, "getbands", None)
    if not callable(bands):
        return UNKNOWN
    names: Any = bands()
    return int(x.width * x.height * len(names))
