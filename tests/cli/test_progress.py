"""The live table of a run."""

import asyncio
import re
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from asyncinfer import Dispatcher
from asyncinfer.cli import rows
from asyncinfer.cli.progress import Progress, view
from asyncinfer.cli.tools import device_facts, trouble
from asyncinfer.errors import DeviceLost
from asyncinfer.testing import SimulatedDriver, run_virtual


async def stats():
    async with Dispatcher([SimulatedDriver("one", 0.1), SimulatedDriver("two", 0.2)]) as dispatcher:
        assert [x async for x in dispatcher.stream(range(30))] == list(range(30))
        return dispatcher.stats()


def test_the_table_names_each_device():
    console = Console(width=100, record=True, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        console.print(view(run_virtual(stats()), 60))
    text = captured.get()
    assert text.startswith("30 of 60 done, 15 tasks/s, 0 failed\n")
    one = next(line for line in text.splitlines() if line.startswith("one"))
    assert one.split() == ["one", "ready", "20", "10", "100%", "100", "ms"]


def test_what_is_wrong_with_a_device_is_told():
    async def run():
        gone = SimulatedDriver("gone", 0.1, fail=lambda x: True)
        async with Dispatcher([gone, SimulatedDriver("two", 0.2)]) as dispatcher:
            gone.open = never
            await dispatcher.infer(1)
            await asyncio.sleep(20)
            return dispatcher.stats()

    async def never():
        raise DeviceLost("gone", "unplugged")

    snapshot = run_virtual(run())
    assert [trouble(device) for device in snapshot.devices][1] == ""
    told = trouble(snapshot.devices[0])
    pattern = r"backing_off for [\d.]+ s, 10 failures, next attempt in [\d.]+ s, device"
    assert re.match(pattern, told), told
    console = Console(width=100)
    with console.capture() as captured:
        console.print(view(snapshot, None))
    assert "gone: backing_off for" in captured.get()


def test_a_device_that_rests_is_told():
    snapshot = run_virtual(stats())
    one, two = snapshot.devices
    two = replace(two, rests="35,300 tasks/s with it, 44,700 without")
    console = Console(width=100)
    with console.capture() as captured:
        console.print(view(replace(snapshot, devices=(one, two)), None))
    lines = captured.get().splitlines()
    assert next(line for line in lines if line.startswith("two")).split()[1] == "rests"
    assert "two rests: 35,300 tasks/s with it, 44,700 without" in lines
    assert device_facts(two, 1.0)["rests"] == two.rests


def test_drawn_on_a_terminal_only(monkeypatch, capsys):
    async def draw(shown):
        async with Dispatcher([SimulatedDriver("one", 0.1)]) as dispatcher:
            with Progress(None, shown=shown) as progress:
                progress(dispatcher)

    run_virtual(draw(True))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run_virtual(draw(False))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run_virtual(draw(True))
    assert "0 done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (("cat", "espresso", None, 0.25), "     3  cat  espresso  (cpu 250 ms)\n"),
        (("cat", None, "no such file", None), "     3  cat  error: no such file  (cpu )\n"),
        (("cat", list(range(40)), None, 0.25), "     3  cat  [0, 1, 2, 3, 4, 5, 6, 7, 8,"),
    ],
)
def test_lines_for_people(capsys, monkeypatch, row, line):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    name, output, error, taken = row
    with rows.opened(None, quiet=False) as write:
        write(
            {
                "index": 3,
                "input": name,
                "output": output,
                "error": error,
                "device": "cpu",
                "seconds": taken,
            }
        )
    assert capsys.readouterr().out.startswith(line)
