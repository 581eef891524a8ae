"""Who ran what when: recorded from events, drawn as text or into a plot."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from asyncinfer._text import seconds
from asyncinfer.events import Event

__all__ = ("Timeline", "draw")

Span = tuple[float, float]

_SHADES = " ▁▂▃▄▅▆▇█"
#: bars closer than this share of the whole are drawn as one
_MERGE = 1 / 2000
_COLOURS = ("#2b6cb0", "#90cdf4")
#: of a device that rests: a cell in text, and its colour
_RESTS, _RESTS_COLOUR = "·", "#e2e8f0"


class Timeline:
    """An ``on_event`` hook that keeps when each device was busy: 16 bytes a task."""

    def __init__(self, devices: Iterable[str]) -> None:
        names = list(devices)
        self._starts = {name: array("d") for name in names}
        self._ends = {name: array("d") for name in names}
        #: when each device began to rest, and when it took part again
        self._rests: dict[str, list[tuple[float, float]]] = {}

    def __call__(self, event: Event) -> None:
        """Keep the end of a task, and when a device rests."""
        if event.kind == "device.rests":
            self._rests.setdefault(event.device, []).append((event.time, math.inf))
        elif event.kind == "device.takes_part":
            rests = self._rests.get(event.device, [])
            rests[-1:] = [(begun, min(end, event.time)) for begun, end in rests[-1:]]
        elif event.kind in ("task.finished", "task.failed") and not math.isnan(event.started):
            self._starts.setdefault(event.device, array("d")).append(event.started)
            self._ends.setdefault(event.device, array("d")).append(event.time)

    @property
    def devices(self) -> Sequence[str]:
        """The devices, in the order they were given."""
        return list(self._starts)

    @property
    def bounds(self) -> Span:
        """The first start and the last end of all; zeros before there is one."""
        begin = min((min(starts) for starts in self._starts.values() if starts), default=0.0)
        return begin, max((max(ends) for ends in self._ends.values() if ends), default=begin)

    def spans(self, device: str, gap: float = 0.0) -> list[Span]:
        """When the device was busy, from the first start of all; pauses up to ``gap`` are left out.

        Tasks of one batch are one span. With a negative ``gap`` tasks that follow one another stay
        apart.
        """
        merged: list[Span] = []
        begin = self.bounds[0]
        for start, end in sorted(zip(self._starts[device], self._ends[device], strict=True)):
            if merged and start - begin <= merged[-1][1] + gap:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end - begin))
            else:
                merged.append((start - begin, end - begin))
        return merged

    def rests(self, device: str) -> list[Span]:
        """When the device rested, from the first start of all and up to the last end."""
        begin, end = self.bounds
        spans = [
            (max(start, begin) - begin, min(stop, end) - begin)
            for start, stop in self._rests.get(device, ())
        ]
        return [(start, stop) for start, stop in spans if stop > start]

    def text(self, width: int = 60) -> str:
        """A Gantt chart: one row a device, the height of a cell is how busy it was in it.

        A dot is for a device that rests.
        """
        begin, end = self.bounds
        label = max((len(name) for name in self._starts), default=0)
        size = (end - begin) / width
        lines = [
            f"{name:<{label}} │{''.join(_row(self, name, size, width))}│" for name in self._starts
        ]
        ruler = f"{'':<{label}}  0{seconds(end - begin):>{width - 1}}"
        return "\n".join([*lines, ruler])


def _row(timeline: Timeline, device: str, size: float, width: int) -> Iterator[str]:
    rests = _cells(timeline.rests(device), size, width)
    for busy, rested in zip(_cells(timeline.spans(device), size, width), rests, strict=True):
        idle = busy == _SHADES[0]
        yield _RESTS if idle and rested != _SHADES[0] else busy


def _cells(spans: Sequence[Span], size: float, width: int) -> Iterator[str]:
    busy = [0.0] * width
    for start, end in spans if size > 0 else ():
        for cell in range(int(start / size), min(width, math.ceil(end / size))):
            busy[cell] += max(0.0, min(end, (cell + 1) * size) - max(start, cell * size))
    for part in busy:
        level = math.ceil(part / size * (len(_SHADES) - 1) - 1e-6) if size > 0 else 0
        yield _SHADES[max(0, min(len(_SHADES) - 1, level))]


def draw(axis: Any, timeline: Timeline) -> None:
    """Draw a Gantt chart into a matplotlib ``Axes``."""
    begin, end = timeline.bounds
    for row, name in enumerate(timeline.devices):
        spans = _drawable(timeline, name, end - begin)
        bars = [(start, stop - start) for start, stop in spans]
        colours = [_COLOURS[i % 2] for i in range(len(bars))]
        rests = [(start, stop - start) for start, stop in timeline.rests(name)]
        axis.broken_barh(rests, (row - 0.35, 0.7), facecolors=_RESTS_COLOUR)
        axis.broken_barh(bars, (row - 0.35, 0.7), facecolors=colours or None)
        for start, length in rests:
            axis.text(start + length / 2, row, "rests", ha="center", va="center", fontsize=7)
    axis.set_yticks(range(len(timeline.devices)), timeline.devices)
    axis.set_ylim(len(timeline.devices) - 0.5, -0.5)
    axis.set_xlim(0, (end - begin) or 1)
    axis.set_xlabel("seconds")


def _drawable(timeline: Timeline, name: str, whole: float) -> Sequence[Span]:
    """Single tasks where they are few enough to be told apart, else merged bars."""
    single = timeline.spans(name, -1e-9 * whole)
    return single if len(single) <= 300 else timeline.spans(name, whole * _MERGE)
