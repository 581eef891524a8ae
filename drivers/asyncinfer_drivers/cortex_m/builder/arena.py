"""Where each tensor lies in the arena, so that it is as small as can be.

bakenn places tensors in the order in which they are made, each into the first gap, which leaves
gaps that nothing fits into: a quarter of a MobileNet's arena. The largest first, as TensorFlow Lite
Micro does it, leaves fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

__all__ = ("packed",)


def packed(layout: Any) -> Any:
    """bakenn's ``MemoryLayout`` with other places in the arena, if that makes it smaller."""
    sizes = {root: _size(layout, root) for root in layout.lifetimes}
    places = _places(sizes, layout.lifetimes, layout.arena_alignment)
    end = max((place + sizes[root] for root, place in places.items()), default=0)
    saved = layout.activation_arena_size - _aligned(end, layout.arena_alignment)
    if saved <= 0:
        return layout
    scratch = layout.scratch_offset
    return replace(
        layout,
        tensors=_moved(layout, places),
        activation_arena_size=layout.activation_arena_size - saved,
        scratch_offset=None if scratch is None else scratch - saved,
        arena_size=layout.arena_size - saved,
    )


def _size(layout: Any, root: str) -> int:
    """The bytes of all tensors that share the place of ``root``."""
    members = layout.alias_groups[root]
    return max(int(layout.tensors[name].tensor_type.nbytes) for name in members)


def _places(
    sizes: Mapping[str, int], lifetimes: Mapping[str, Any], alignment: int
) -> dict[str, int]:
    """An offset for each: the largest first, into the lowest gap beside those of its time."""
    places: dict[str, int] = {}
    for root in sorted(sizes, key=lambda name: (-sizes[name], lifetimes[name].birth, name)):
        beside = [other for other in places if lifetimes[other].overlaps(lifetimes[root])]
        start = 0
        for other in sorted(beside, key=places.__getitem__):
            if start + sizes[root] <= places[other]:
                break
            start = max(start, _aligned(places[other] + sizes[other], alignment))
        places[root] = start
    return places


def _moved(layout: Any, places: Mapping[str, int]) -> dict[str, Any]:
    tensors = dict(layout.tensors)
    for root, place in places.items():
        for name in layout.alias_groups[root]:
            tensors[name] = replace(tensors[name], offset=place)
    return tensors


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
