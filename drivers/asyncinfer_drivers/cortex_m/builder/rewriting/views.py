"""Rules for what only moves numbers: reshapes, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from asyncinfer_drivers.cortex_m.builder.rewriting.arithmetic import affine
from asyncinfer_drivers.cortex_m.builder.rewriting.call import Call, rule
from asyncinfer_drivers.cortex_m.builder.rewriting.names import MOVES, NOTHING
from asyncinfer_drivers.cortex_m.builder.rewriting.net import Held, Map, Net
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import WrongLayout

__all__ = ("concatenated",)


@rule(*MOVES)
def _move(net: Net, call: Call) -> Any:
    """The operator itself, on the places."""
    import torch

    def given(value: Any) -> Any:
        return (
            torch.from_numpy(np.ascontiguousarray(value.index))
            if isinstance(value, Held)
            else value
        )

    (held,) = call.helds[:1]
    target: Any = call.node.target
    args = {key: given(value) for key, value in call.given.items()}
    moved = target(**args)
    if isinstance(moved, torch.Tensor):
        return Held(held.name, moved.numpy())
    return tuple(Held(held.name, part.numpy()) for part in moved)


@rule("index.Tensor")
def _pick(net: Net, call: Call) -> Any:
    picked = call["indices"]
    if not isinstance(call["self"], Held) or any(isinstance(one, Held) for one in picked):
        raise call.refuse("picks numbers by others that are computed", "pick at known places")
    return _move(net, call)


@rule(*NOTHING)
def _nothing(net: Net, call: Call) -> Held:
    held: Held = call.helds[0]
    if not call.node.meta["val"].dtype.is_floating_point:
        raise call.refuse("makes numbers that are not float32")
    return held


# ---- several tensors


@rule("cat.default", "concat.default", "concatenate.default", "stack.default")
def _cat(net: Net, call: Call) -> Held:
    parts, axis = list(call["tensors"]), call["dim"]
    if not all(isinstance(part, Held) for part in parts):
        raise call.refuse("joins known numbers", "add them as a bias, or on the host")
    axis %= len(call.shape)
    if "stack" in str(call.node.target):
        parts = [Held(part.name, np.expand_dims(part.index, axis)) for part in parts]
    return concatenated(net, call.label, parts, axis)


def concatenated(net: Net, label: str, parts: Sequence[Held], axis: int) -> Held:
    """Tensors one after another along ``axis``."""
    if len(parts) == 1:
        return parts[0]
    rank = parts[0].index.ndim
    for roles in {1: ["C"], 2: ["CW", "WC"], 3: ["CHW", "HWC", "WHC"]}.get(rank - 1, []):
        try:
            maps = [net.map(part, [roles]) for part in parts]
        except WrongLayout:
            continue
        return _joined(net, label, maps, roles[axis - 1]).held()
    raise WrongLayout("")


def _joined(net: Net, label: str, maps: list[Map], role: str) -> Map:
    first = maps[0]
    if role != "C":
        if any(not np.array_equal(found.places, first.places) for found in maps):
            maps = [net.ordered(found) for found in maps]
            first = maps[0]
        name = net.concat([found.name for found in maps], "_CHW".index(role), label)
        _, _, height, width = net.shape(name)
        return replace(first, name=name, height=height, width=width)
    starts = np.cumsum([0, *(found.channels for found in maps)])
    places = [start + found.places for start, found in zip(starts[:-1], maps, strict=True)]
    name = net.concat([found.name for found in maps], 1, label)
    return replace(first, name=name, channels=int(starts[-1]), places=np.concatenate(places))


@rule("glu.default")
def _glu(net: Net, call: Call) -> Held:
    """The first half times a sigmoid of the second."""
    from asyncinfer_drivers.cortex_m.builder.rewriting.arithmetic import _combined

    halves = [
        Held(call["self"].name, part) for part in np.split(call["self"].index, 2, call["dim"])
    ]
    first, second = (net.whole(half) for half in halves)
    gate = net.add("FloatSigmoidOp", f"{call.label}_gate", net.shape(second.name), second.name, ...)
    return _combined(net, call, "FloatMulOp", first, Held(gate, second.index))


# ---- padding


@rule("pad.default", "constant_pad_nd.default")
def _pad(net: Net, call: Call) -> Held:
    held, mode = call["self"], call["mode"] or "constant"
    sides = list(call["pad"])
    pairs = [(sides[at], sides[at + 1]) for at in range(0, len(sides), 2)][::-1]
    widths = [(0, 0)] * (held.index.ndim - len(pairs)) + pairs
    if min(sides) < 0:
        cut = zip(widths, held.index.shape, strict=True)
        kept = tuple(_cut(before, after, size) for (before, after), size in cut)
        held = Held(held.name, held.index[kept])
        widths = [(max(0, before), max(0, after)) for before, after in widths]
    if mode != "constant":
        modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
        return net.whole(Held(held.name, np.pad(held.index, widths, modes[mode])))
    value = call["value"] or 0.0
    if value:
        held = affine(net, call, held, 1, -value)
    found = _zeros_around(net, call, held, widths)
    return affine(net, call, found, 1, value) if value else found


def _cut(before: int, after: int, size: int) -> slice:
    return slice(max(0, -before), size + min(0, after))


def _zeros_around(net: Net, call: Call, held: Held, widths: list[tuple[int, int]]) -> Held:
    found = net.map(held)
    around = {role: widths[axis] for axis, role in enumerate(found.roles, 1)}
    if widths[0] != (0, 0) or around.get("C", (0, 0)) != (0, 0):
        return _zero_channels(net, call, found, around)
    (top, bottom), (left, right) = around.get("H", (0, 0)), around.get("W", (0, 0))
    height, width = found.height + top + bottom, found.width + left + right
    shape, padding = (1, found.channels, height, width), (top, bottom, left, right)
    name = net.add("FloatPad2DOp", call.label, shape, found.name, ..., padding)
    return replace(found, name=name, height=height, width=width).held()


def _zero_channels(net: Net, call: Call, found: Map, around: dict[str, tuple[int, int]]) -> Held:
    """Channels of zeros: a convolution with ones at the others."""
    from asyncinfer_drivers.cortex_m.builder.rewriting.layers import convolve

    if any(any(width) for role, width in around.items() if role != "C"):
        raise call.refuse("pads channels and places", "pad them one after the other")
    before, after = around["C"]
    eye = np.eye(found.channels, dtype=np.float32)
    weight = np.pad(eye, ((before, after), (0, 0)))[:, :, None, None]
    return convolve(net, call, found, weight, None, ((1, 1), (0, 0, 0, 0), (1, 1))).held()
