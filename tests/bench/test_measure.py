"""Measuring in turns, medians, loop lag; facts about the machine."""

import asyncio
import math
import socket
import time
from pathlib import Path

import pytest

from asyncinfer.bench.machine import machine, threads, versions
from asyncinfer.bench.measure import LoopLag, interleaved, median_spread, peak_rss


def test_cases_take_turns_and_every_other_round_goes_backwards():
    order = []

    def case(name):
        def run():
            order.append(name)
            return float(len(order))

        return run

    measured = interleaved({name: case(name) for name in "ab"}, runs=2, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert measured == {"a": [3, 6], "b": [4, 5]}


def test_spread():
    spread = median_spread([3.0, 1.0, math.nan, 2.0])
    assert (spread.median, spread.least, spread.most, spread.relative) == (2, 1, 3, 1)
    assert math.isnan(median_spread([]).median)


async def test_lag_shows_what_blocks_the_loop():
    with LoopLag() as lag:
        await asyncio.sleep(0.01)
        time.sleep(0.03)  # noqa: ASYNC251
        await asyncio.sleep(0.01)
    ticks = len(lag.samples)
    await asyncio.sleep(0.005)
    assert lag.worst >= 0.02
    assert 0 <= lag.p99 <= lag.worst
    assert len(lag.samples) == ticks


def test_memory_is_counted():
    assert peak_rss() > 5e6


def test_facts_tell_no_place():
    text = f"{machine()} {versions()} {threads()}"
    assert machine()["cpu"]
    assert socket.gethostname() not in text.split()
    assert str(Path.cwd()) not in text


@pytest.mark.parametrize("name", ["python", "asyncinfer", "torch", "numpy", "uvloop"])
def test_versions_are_named(name):
    assert name in versions()
