"""Plots that compare policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from asyncinfer.bench.measure import Spread

__all__ = ("Draw", "bars", "distributions", "dots", "lines")

#: draws into a matplotlib ``Axes``
Draw: TypeAlias = Callable[[Any], None]

#: how their lines are drawn: all can be seen where they lie on one another
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "eft": {"color": "#2b6cb0", "linewidth": 3},
    "greedy": {"color": "#dd6b20", "linestyle": "--"},
    "static": {"color": "#2f855a", "linewidth": 3, "alpha": 0.5},
    "sync": {"color": "#b83280", "linestyle": ":"},
}


def lines(
    x: Sequence[float],
    ys: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    top: float | None = None,
) -> Draw:
    """A line with a dot a value for each policy; ``log_x``: to the base of 2, a tick each."""

    def draw(axes: Any) -> None:
        for policy, y in ys.items():
            axes.plot(x, y, marker="o", label=policy, **_STYLES.get(policy, {}))
        if log_x:
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [f"{value:g}" for value in x], rotation=45 if len(x) > 6 else 0)
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
        if top is not None:
            axes.set_ylim(0, top)
        _name(axes, labels)

    return draw


def distributions(samples: Mapping[str, Sequence[float]], label: str) -> Draw:
    """What part of the samples is at most so large, for each policy."""

    def draw(axes: Any) -> None:
        for policy, values in samples.items():
            ordered = sorted(values)
            parts = [(i + 1) / len(ordered) for i in range(len(ordered))]
            axes.step(ordered, parts, where="post", label=policy, **_STYLES.get(policy, {}))
        axes.set_xscale("log")
        _name(axes, (label, "part of the tasks"))

    return draw


def bars(spreads: Mapping[str, Spread], label: str) -> Draw:
    """A bar as long as the median, and a line between the extremes; the first one stands out."""

    def draw(axes: Any) -> None:
        names, found = list(spreads), list(spreads.values())
        colors = ["#2b6cb0", *["#a0aec0"] * (len(names) - 1)]
        below = [max(0.0, each.median - each.least) for each in found]
        above = [max(0.0, each.most - each.median) for each in found]
        medians = [each.median for each in found]
        axes.barh(names, medians, color=colors, xerr=[below, above])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)

    return draw


def dots(samples: Mapping[str, Sequence[float]], label: str) -> Draw:
    """A row of dots for each name, in order."""

    def draw(axes: Any) -> None:
        for name, values in samples.items():
            axes.plot(values, [name] * len(values), "o", color="#2b6cb0", alpha=0.5)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)

    return draw


def _name(axes: Any, labels: tuple[str, str]) -> None:
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.3)
    axes.legend()
