"""Who ran what when, as spans and as text; and how values are printed."""

from typing import NamedTuple

import pytest

from asyncinfer.bench.simulated.timeline import draw
from asyncinfer.cli.output import plain, seconds
from asyncinfer.cli.timeline import Timeline
from asyncinfer.events import Event


def recorded(*tasks, devices=("a", "b")):
    timeline = Timeline(name for name in devices)
    for device, start, end in tasks:
        timeline(Event("task.finished", end, device, started=start))
    return timeline


def test_spans_start_at_zero_and_merge():
    timeline = recorded(("a", 10, 11), ("a", 11, 12), ("a", 10, 11), ("b", 11, 13), ("a", 14, 15))
    assert timeline.spans("a") == [(0, 2), (4, 5)]
    assert timeline.spans("a", -1e-9) == [(0, 1), (1, 2), (4, 5)]
    assert timeline.spans("a", 2) == [(0, 5)]
    assert timeline.spans("b") == [(1, 3)]
    assert timeline.bounds == (10, 15)


def test_text_shows_how_busy_each_was():
    text = recorded(("a", 0, 8), ("b", 4, 5), ("b", 6, 6.5), devices=("a", "b", "idle")).text(8)
    assert text.splitlines() == [
        "a    │████████│",
        "b    │    █ ▄ │",
        "idle │        │",
        "      0    8 s",
    ]


def test_a_device_that_rests_is_dotted():
    timeline = recorded(("a", 0, 8), ("b", 3, 4))
    for kind, at in (("rests", -2), ("takes_part", 3), ("takes_part", 3.5), ("rests", 6)):
        timeline(Event(f"device.{kind}", at, "b"))
    assert timeline.rests("b") == [(0, 3), (6, 8)]
    assert timeline.rests("a") == []
    assert timeline.text(8).splitlines()[:2] == ["a │████████│", "b │···█  ··│"]
    axis = pytest.importorskip("matplotlib.figure").Figure().subplots()
    draw(axis, timeline)
    assert [text.get_text() for text in axis.texts] == ["rests", "rests"]


def test_nothing_recorded():
    timeline = recorded()
    timeline(Event("device.ready", 1.0, "a"))
    timeline(Event("task.failed", 1.0, "a"))
    assert timeline.bounds == (0, 0)
    assert "│    │" in timeline.text(4)


class Point(NamedTuple):
    x: int
    y: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (Point(1, 2.5), {"x": 1, "y": 2.5}),
        ({1: (2, 3)}, {"1": [2, 3]}),
        (Event("device.ready", 1.0).kind, "device.ready"),
        (object, str(object)),
        (b"raw", "b'raw'"),
    ],
)
def test_plain_values(value, expected):
    assert plain(value) == expected


def test_plain_arrays():
    numpy = pytest.importorskip("numpy")
    assert plain(numpy.array([[1.0, 2.0]])) == [[1.0, 2.0]]
    assert plain(numpy.float32(0.5)) == 0.5
    assert plain({"a": numpy.int64(3)}) == {"a": 3}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0 s"),
        (1.5, "1.5 s"),
        (0.00025, "250 µs"),
        (0.25, "250 ms"),
        (1e-7, "0.1 µs"),
        (4.745, "4.745 s"),
        (86400.0, "86400 s"),
    ],
)
def test_durations(value, text):
    assert seconds(value) == text
