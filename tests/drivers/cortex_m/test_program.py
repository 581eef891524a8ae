"""A program in a thread of its own: what it says, how it ends, and that the loop goes on."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest

from asyncinfer_drivers.cortex_m.program import Program

NAME = re.compile(rb"name (\S+)")


def shell(script):
    return Program("shell", ["/bin/sh", "-c", script])


async def test_what_it_says_and_that_it_ends():
    program = shell("echo one; echo name two; echo three >&2; exec sleep 60")
    assert await program.find(NAME) == b"two"
    assert program.running
    await program.kill()
    assert not program.running
    assert program.said.startswith(b"one\nname two\n")
    await program.kill()
    await program.wait()
    program.signal(signal.SIGCONT)


async def test_one_that_ends_without_a_name():
    program = shell("echo no; exit 3")
    assert await program.find(NAME) is None
    await program.wait()
    assert program.said == b"no\n"


async def test_no_such_program(monkeypatch):
    monkeypatch.setattr("asyncinfer_drivers.cortex_m.program.dies_with_us", list)
    program = Program("none", ["/no/such/program"])
    assert await program.find(NAME) is None
    with pytest.raises(FileNotFoundError):
        await program.wait()
    await program.kill()


async def test_it_is_started_beside_the_loop_and_killed_though_it_was_only_starting(monkeypatch):
    gate, here, threads = threading.Event(), threading.current_thread(), []
    start = subprocess.Popen

    def slow(*arguments, **options):
        threads.append(threading.current_thread())
        gate.wait(10)
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", slow)
    program = shell("exec sleep 60")
    killing = asyncio.create_task(program.kill())
    await asyncio.sleep(0.01)
    assert not killing.done()
    gate.set()
    await killing
    assert not program.running
    assert threads != [here]


async def test_what_it_says_is_bounded():
    program = shell("head -c 1000000 /dev/zero | tr '\\0' 'x'; echo; echo more; echo more")
    await program.wait()
    assert len(program.said) == 65_536


@pytest.mark.skipif(sys.platform != "linux", reason="states are Linux's to show")
async def test_signals_reach_it():
    program = shell("echo name x; exec sleep 60")
    assert await program.find(NAME)
    program.signal(signal.SIGSTOP)
    await until_state(program.pid, "T")
    program.signal(signal.SIGCONT)
    await until_state(program.pid, "S")
    program.signal(signal.SIGSTOP)
    await program.kill()


async def until_state(pid, wanted):
    async with asyncio.timeout(10):
        for _ in count():
            if state_of(pid) == wanted:
                return
            await asyncio.sleep(0.01)


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
