"""Timelines as a picture in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from asyncinfer.bench.simulated.timeline import Timeline, draw
from asyncinfer.cli.tools import optional
from asyncinfer.errors import ConfigError

__all__ = ("Timeline", "check_picture", "picture")


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be saved, before anything is run."""
    if path is None:
        return
    known = optional("matplotlib.figure", "a picture").Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise ConfigError(f"{path}: write a picture as .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no such folder: {path.parent}")


def picture(path: Path, timelines: Mapping[str, Timeline]) -> None:
    """Save one chart for each titled timeline, below one another."""
    rows = [len(timeline.devices) for timeline in timelines.values()]
    height = sum(0.35 * count + 1.1 for count in rows)
    figure = optional("matplotlib.figure", "a picture").Figure(
        figsize=(10, height), layout="constrained"
    )
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[n + 2 for n in rows])
    for axis, (title, timeline) in zip(axes[:, 0], timelines.items(), strict=True):
        draw(axis, timeline)
        axis.set_title(title, loc="left", fontsize=10)
    figure.savefig(path, dpi=150)
